package fleet_test

import (
	"fmt"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

func TestEachInstanceBelongsToOneShardAndMovesToANewOneOnly(t *testing.T) {
	t.Parallel()
	const instances, shards = 10_000, 4
	counts := [shards + 1]int{}
	for n := range instances {
		name := fmt.Sprintf("acme-%05d", n)
		owner := func(of int) (found int) {
			for i := 1; i <= of; i++ {
				if (fleet.Shard{Index: i, Count: of}).Has(name) {
					if found != 0 {
						t.Fatalf("%s is in %d and %d of %d", name, found, i, of)
					}
					found = i
				}
			}
			return found
		}
		before, after := owner(shards-1), owner(shards)
		if before == 0 || after == 0 || before != after && after != shards {
			t.Fatalf("%s goes from %d of %d to %d of %d", name, before, shards-1, after, shards)
		}
		counts[after]++
	}
	for i, n := range counts[1:] {
		if n < instances/shards*9/10 || n > instances/shards*11/10 {
			t.Errorf("shard %d has %d of %d", i+1, n, instances)
		}
	}
	for _, text := range []string{"0/2", "3/2", "1", "a/b", "1/1001", "-1/2"} {
		if s, err := fleet.ParseShard(text); err == nil {
			t.Errorf("%q was read as %s", text, s)
		}
	}
}
