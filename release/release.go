// Package release decides what a version is called, where its tags point and
// what may be deleted.
//
// Three places outside hold all of its state, and each is an interface here,
// implemented by a package below that is named for its technology:
//
//   - Refs, a git repository's refs, over the GitHub API or the git protocol:
//     claims of version numbers and the ledger of verdicts and deprecations;
//   - Registry, an OCI registry: images by digest, tags that point at them;
//   - Forge, the code host's other services: alerts, releases, package versions.
//
// Ledger reads and writes claims, verdicts and deprecations. Publisher moves
// tags: Publish, Promote, Verdict, Deprecate and Rollback are each a visible list of
// steps that can be repeated at any point and then converge. Prune is two
// functions: Plan is pure and says for every version why it is kept or deleted;
// Apply executes exactly that plan.
//
// What holds everywhere: a version number exists once over all channels and is
// never used again; a digest is an image's identity and a tag a pointer to it;
// floating tags move forward only, and Rollback is the one way back; nothing in
// the registry is believed about age, only the ledger.
package release

import "errors"

// Errors of the places outside. Adapters wrap them, together with a
// problem.Error that says what a person can do.
var (
	// ErrNotFound: what was asked for does not exist. An adapter returns it only
	// for an answer that says so, never for a failed call or a missing right.
	ErrNotFound = errors.New("not found")
	// ErrExists: a ref could not be created because it exists.
	ErrExists = errors.New("exists already")
	// ErrUncertain: the call's outcome is unknown (lost reply, 5xx, time-out): it may
	// have been carried out. Read before trying again.
	ErrUncertain = errors.New("outcome unknown")
	// ErrRetained: the host keeps a package version by a rule of its own, such
	// as too many downloads. Not a failure.
	ErrRetained = errors.New("retained by the host")
)
