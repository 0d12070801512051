"""`aios bench contention`: recorded agent sessions, scaled down, on a real engine that they overload."""
