//go:build !bench

package monitor_test

// benchRole is for the tier of benchmarks.
func benchRole() bool { return false }
