package release

import (
	"slices"
	"strings"
)

// graph is how manifests depend on each other. Only digests that exist are in
// it: an edge to a missing one is left out.
type graph struct {
	nodes  []node
	at     map[string]int // by digest
	listed int            // so many nodes, from the first, are listed versions
}

type node struct {
	PlannedVersion
	children  []int // manifests of this index
	parents   []int // indexes that have this manifest
	referrers []int // manifests that are about this one: signatures, attestations, SBOMs
	about     []int // what this one is about, by subject or by its sha256-… tags
	subject   int   // what its content says that it is about, or -1
}

// newGraph draws all edges between listed versions and other manifests.
func newGraph(listed, others []PlannedVersion) *graph {
	g := &graph{at: make(map[string]int, len(listed)), listed: len(listed)}
	for _, v := range slices.Concat(listed, others) {
		g.at[v.Digest] = len(g.nodes)
		g.nodes = append(g.nodes, node{PlannedVersion: v, subject: -1})
	}
	for i := range g.nodes {
		n := &g.nodes[i]
		for _, digest := range n.Children {
			if child, ok := g.at[digest]; ok && !slices.Contains(n.children, child) {
				n.children = append(n.children, child)
				g.nodes[child].parents = append(g.nodes[child].parents, i)
			}
		}
		if subject, ok := g.at[n.Subject]; ok && n.Subject != "" {
			n.subject = subject
			n.about = append(n.about, subject)
		}
		for _, tag := range n.Tags {
			if about, ok := g.at[ParseTag(tag).Subject]; ok && !slices.Contains(n.about, about) {
				n.about = append(n.about, about)
			}
		}
		for _, about := range n.about {
			g.nodes[about].referrers = append(g.nodes[about].referrers, i)
		}
	}
	return g
}

func (g *graph) unlisted(i int) bool { return i >= g.listed }

// needs calls yield with everything that is of no use, or of less, when node i
// stays and it goes: its children and referrers, and theirs.
func (g *graph) needs(i int, yield func(int)) {
	seen := map[int]bool{i: true}
	work := []int{i}
	for len(work) > 0 {
		n := g.nodes[work[0]]
		work = work[1:]
		for _, next := range slices.Concat(n.children, n.referrers) {
			if !seen[next] {
				seen[next] = true
				work = append(work, next)
				yield(next)
			}
		}
	}
}

// order sorts what goes: parents before children, and subjects before what is
// about them, so that whatever the host refuses to delete still has all that it
// needs. Where both cannot hold (a signature's tag on an index that has what is
// signed) the first does: digests cannot name each other in a circle, so it
// always can.
func (g *graph) order(going []int) []int {
	waits := make(map[int]int, len(going))   // for how many parents and subjects
	parents := make(map[int]int, len(going)) // for how many parents
	for _, i := range going {
		waits[i], parents[i] = 0, 0
	}
	for _, i := range going {
		for _, child := range g.nodes[i].children {
			if _, ok := waits[child]; ok {
				waits[child]++
				parents[child]++
			}
		}
		for _, referrer := range g.nodes[i].referrers {
			if _, ok := waits[referrer]; ok {
				waits[referrer]++
			}
		}
	}
	// The oldest come first; a stack keeps what belongs together together.
	var ready, order []int
	for _, i := range going {
		if waits[i] == 0 {
			ready = append(ready, i)
		}
	}
	free := func(next int) {
		if left, ok := waits[next]; ok {
			if waits[next] = left - 1; left == 1 {
				ready = append(ready, next)
			}
		}
	}
	for len(waits) > 0 {
		if len(ready) == 0 { // a circle through a subject
			at := slices.IndexFunc(going, func(i int) bool { _, ok := waits[i]; return ok && parents[i] == 0 })
			if at < 0 { // only where digests are not what they say
				at = slices.IndexFunc(going, func(i int) bool { _, ok := waits[i]; return ok })
			}
			ready = append(ready, going[at])
		}
		i := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		if _, ok := waits[i]; !ok {
			continue
		}
		delete(waits, i)
		order = append(order, i)
		for _, child := range g.nodes[i].children {
			parents[child]--
			free(child)
		}
		for _, referrer := range g.nodes[i].referrers {
			free(referrer)
		}
	}
	return order
}

// name is how reasons call a manifest: its digest's beginning and a tag that
// says something.
func (n node) name() string {
	for _, tag := range n.Tags {
		if ParseTag(tag).Kind != TagReferrer {
			return short(n.Digest) + " (" + tag + ")"
		}
	}
	return short(n.Digest)
}

// short is a digest's beginning, for people.
func short(digest string) string {
	const digits = 12
	algorithm, hex, ok := strings.Cut(digest, ":")
	if !ok || len(hex) <= digits {
		return digest
	}
	return algorithm + ":" + hex[:digits]
}
