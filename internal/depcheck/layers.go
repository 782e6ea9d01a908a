package depcheck

import (
	"slices"
	"strings"
)

// A layer is one part of the house and what it may import of the others.
type layer struct {
	root    string
	alone   bool     // the root package only; what lies below is another layer's
	each    bool     // each folder directly below root is a room of its own, which sees itself and root
	imports []string // further local packages; "/..." takes those below too
	why     string
}

// layers returns the house of docs/architecture.md; a package belongs to the
// first that fits. Everything may import internal/, and its own room.
func layers() []layer {
	const adapter = "an adapter imports its own root only: rooms that do not know each other can be added, replaced and removed alone"
	return []layer{
		{
			root: "internal",
			why:  "internal/ serves every part, so it can know none: a domain word in it would reach all three binaries",
		},
		{
			root: "breaking",
			why:  "breaking compares two documents and needs nothing else: it must judge a base revision without building it",
		},
		{
			root: "connectors", alone: true,
			why: "the extract contract is what connectors and instance agree on; if it knew either side, neither could change alone",
		},
		{root: "connectors", each: true, why: adapter},
		{
			root: "infra", alone: true,
			why: "infra describes machines; who deploys to them is not its business",
		},
		{root: "infra", each: true, why: adapter},
		{
			root: "agent/api",
			why:  "agent/api is agnesctl's only door to an instance: what it imports, the fleet's static CLI links",
		},
		{
			root: "agent", imports: []string{"connectors"},
			why: "an instance never knows that it is in a fleet, and gets its sources from cmd, which lists what is wired",
		},
		{
			root: "release", alone: true, imports: []string{"breaking"},
			why: "release promotes what breaking judged; it knows neither instances nor fleets",
		},
		{root: "release", each: true, why: adapter},
		{
			root: "fleet/deploy", alone: true, imports: []string{"release", "infra", "agent/api", "fleet/..."},
			why: "the deploy transaction is the same on every host: how a host is reached is its adapters' business",
		},
		{root: "fleet/deploy", each: true, why: adapter},
		{
			root: "fleet", imports: []string{"release", "infra", "agent/api"},
			why: "a fleet sees an instance through its API alone, so that an instance of any version can be looked after",
		},
		{
			root: "cmd", each: true, imports: []string{"agent/...", "connectors/...", "breaking/...", "release/...", "fleet/...", "infra/..."},
			why: "only cmd wires, and one program is no library of another",
		},
		{
			root: "e2e", imports: []string{"agent/api"},
			why: "whole stories use the binaries and the API as people do; what they reach inside would not be proven",
		},
		{
			root: "examples",
			why:  "examples show the product from outside",
		},
	}
}

// find returns the layer of a local package.
func find(p string) (layer, bool) {
	for _, l := range layers() {
		if l.alone && p == l.root || !l.alone && within(p, l.root) {
			return l, true
		}
	}
	return layer{}, false
}

// room returns the folder whose packages p may import freely.
func (l layer) room(p string) string {
	if n := strings.Count(l.root, "/") + 2; l.each && strings.Count(p, "/")+1 >= n {
		return parentOf(p, n)
	}
	return l.root
}

// allows reports whether the package p of this layer may import q.
func (l layer) allows(p, q string) bool {
	switch {
	case within(q, "internal"):
		return true
	case l.alone && within(q, l.root): // a root knows none of its adapters
		return false
	case within(q, l.room(p)):
		return true
	case l.each && q == l.root && l.root != "cmd":
		return true
	}
	return slices.ContainsFunc(l.imports, func(allowed string) bool {
		if root, deep := strings.CutSuffix(allowed, "/..."); deep {
			return within(q, root)
		}
		return q == allowed
	})
}
