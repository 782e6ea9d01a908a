package fleet

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Shard is one of several pollers that share a fleet: each instance belongs to
// exactly one, by a hash of its name, whatever else the inventory has. The zero
// Shard has them all.
type Shard struct {
	Index int // from 1
	Count int
}

// maxShards bounds the pollers of a fleet.
const maxShards = 1000

// ParseShard reads I/N, such as 2/5. No text is the zero Shard.
func ParseShard(text string) (Shard, error) {
	if text == "" {
		return Shard{}, nil
	}
	index, count, _ := strings.Cut(text, "/")
	i, err := strconv.Atoi(index)
	n, wrong := strconv.Atoi(count)
	if err != nil || wrong != nil || i < 1 || n < i || n > maxShards {
		return Shard{}, problem.New(problem.Usage, fmt.Sprintf("Expected a shard I/N with 1 <= I <= N <= %d, found %q.", maxShards, text), "The second of five pollers is 2/5.")
	}
	return Shard{i, n}, nil
}

// Has reports whether an instance belongs to the shard: of all shards it gives
// the name the highest number (rendezvous hashing), so that one more poller takes
// its share of each and moves nothing else.
func (s Shard) Has(name string) bool {
	if s.Count < 2 {
		return true
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	id := h.Sum64()
	best, highest := 0, uint64(0)
	for i := 1; i <= s.Count; i++ {
		if x := mixed(id ^ mixed(uint64(i))); best == 0 || x > highest {
			best, highest = i, x
		}
	}
	return best == s.Index
}

// mixed spreads a number's bits (splitmix64): FNV alone is too alike for names that
// differ in their last letter.
func mixed(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Of returns the instances of the shard.
func (s Shard) Of(instances []Instance) []Instance {
	if s.Count < 2 {
		return instances
	}
	var mine []Instance
	for _, in := range instances {
		if s.Has(in.Name) {
			mine = append(mine, in)
		}
	}
	return mine
}

// String returns I/N, or nothing for the zero Shard.
func (s Shard) String() string {
	if s.Count == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d", s.Index, s.Count)
}
