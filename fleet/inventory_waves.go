package fleet

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Assignment is a wave with its members, in the inventory's order.
type Assignment struct {
	Wave    Wave
	Members []Instance
}

// Assign divides the instances into waves: each is in exactly one, the first that
// takes it. A wave takes those of the remaining that its Match selects, and where
// it has a Percent, that share of them, rounded up, in the order of a hash of
// their names: the same ones each time, whatever their order in the file. So a
// wave without both takes the rest.
//
// Instances that no wave takes are an error that names them. A rollout assigns
// once, at its start, and keeps the answer.
func (v *Inventory) Assign(waves []Wave) ([]Assignment, error) {
	remaining := v.Instances
	assigned := make([]Assignment, 0, len(waves))
	for _, w := range waves {
		taken := w.pick(remaining)
		a := Assignment{Wave: w}
		var left []Instance
		for n, i := range remaining {
			if taken[n] {
				a.Members = append(a.Members, i)
			} else {
				left = append(left, i)
			}
		}
		assigned, remaining = append(assigned, a), left
	}
	if len(remaining) > 0 {
		return nil, problem.New(problem.Usage, "expected every instance in a wave, found none for "+someNames(remaining),
			"Add a last wave that takes the rest: {name: rest, max_unavailable: 10%}")
	}
	return assigned, nil
}

// pick returns which of the instances the wave takes, by index.
func (w Wave) pick(from []Instance) []bool {
	taken := make([]bool, len(from))
	type candidate struct {
		index int
		name  string
		hash  [sha256.Size]byte
	}
	var candidates []candidate
	for n, i := range from {
		if w.Match.Matches(i.LabelSet()) {
			candidates = append(candidates, candidate{index: n, name: i.Name})
		}
	}
	if w.Percent > 0 {
		for n := range candidates {
			candidates[n].hash = sha256.Sum256([]byte(candidates[n].name))
		}
		slices.SortFunc(candidates, func(a, b candidate) int {
			return cmp.Or(slices.Compare(a.hash[:], b.hash[:]), strings.Compare(a.name, b.name))
		})
		candidates = candidates[:(len(candidates)*min(w.Percent, 100)+99)/100]
	}
	for _, c := range candidates {
		taken[c.index] = true
	}
	return taken
}

// takesAll reports whether no instance is left after the wave.
func (w Wave) takesAll() bool { return w.Match.Empty() && (w.Percent == 0 || w.Percent == 100) }

// someNames lists instances for a message.
func someNames(instances []Instance) string {
	const most = 10
	var names []string
	for _, i := range instances[:min(len(instances), most)] {
		names = append(names, i.Name)
	}
	text := strings.Join(names, ", ")
	if more := len(instances) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
