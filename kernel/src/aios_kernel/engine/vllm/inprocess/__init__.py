"""vLLM in the kernel's own process: the kernel says who computes how many tokens in each of its steps.

Level B: vLLM owns model, blocks, prefix cache and batch; three of its hooks are ours. Its scheduler schedules what the
plan of the step says (`scheduler`); its sampler says what ours chose (`processor`), so that sampling, grammars, forced
tokens and reports are the same as on the other engines; its KV connector brings snapshots back, generated tokens
included (`connector`). The hooks are none of vLLM's public interface: `hooks` names what they rely on, and is asked
before anything is loaded.

These modules import vLLM, which is in no environment of the kernel's own; only `load` and `hooks` may be imported
without it.
"""
