//go:build bench || e2e

package server_test

import "testing"

// TestBenchSoak sends 10,000 mixed queries during continuous publishes.
func TestBenchSoak(t *testing.T) { soak(t, 2000, 10_000) }
