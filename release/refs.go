package release

import (
	"context"
	"time"
)

// Refs is a git repository's refs: the only compare-and-set that every forge
// has. Refs are created and never moved or deleted here.
type Refs interface {
	// Create writes an annotated tag object and points refs/tags/NAME and every
	// ref of also at it, where none of them exists. A technology that can do so
	// creates all or none; another creates in order and stops at the first that
	// exists. The error wraps ErrExists and is a *RefError when a ref exists,
	// wraps ErrUncertain when the outcome is unknown, and ErrNotFound when the
	// repository does not have t.Commit.
	Create(ctx context.Context, t Tag, also ...string) (Tag, error)
	// Point creates one more ref at a tag object that Create, Find or Read gave:
	// it mends what an interrupted Create left. Errors are those of Create; a ref
	// that points at this very object already exists, too.
	Point(ctx context.Context, ref string, t Tag) error
	// Find returns the tag object that a full ref name points at, or ErrNotFound.
	// A ref that points at a commit directly, as a person's `git tag` makes it,
	// gives a Tag with that commit as ID and Commit, without message and time.
	Find(ctx context.Context, ref string) (Tag, error)
	// List returns all refs whose full name begins with prefix, such as
	// refs/tags/2026.04., in no order. It may lag behind Create by seconds on a
	// forge that replicates; Find does not.
	List(ctx context.Context, prefix string) ([]Ref, error)
	// Read returns the tag objects of refs that List gave, in the same order.
	// Over a forge's API each one that was not read before costs a request.
	Read(ctx context.Context, refs []Ref) ([]Tag, error)
}

// Chooser is a Refs that can look and create in one conversation: quicker, and
// with less time for others in between.
type Chooser interface {
	// CreateChosen calls choose with all refs that exist, Commit left out, and
	// creates what it returns as Create does: all of it or nothing. An error of
	// choose ends it. errors.ErrUnsupported, before choose was called: this server
	// cannot create all or none; Create can.
	CreateChosen(ctx context.Context, choose func([]Ref) (t Tag, also []string, err error)) (Tag, error)
}

// Ref is a name and the object that it points at.
type Ref struct {
	Name   string // full: refs/tags/2026.04.3
	ID     string // of the tag object
	Commit string // what the object points at, where the listing tells it; ID itself for a ref at a commit
}

// Tag is an annotated tag: a claim or an entry of the ledger.
type Tag struct {
	ID      string    // of the tag object; set by Refs
	Name    string    // below refs/tags/: 2026.04.3, deprecated/2026.04.3
	Commit  string    // what it points at
	Message string    // a subject line, an empty line, trailers
	At      time.Time // the tagger's time; whole seconds, UTC
}

// RefError says which ref exists.
type RefError struct{ Ref string }

// Error names the ref.
func (e *RefError) Error() string { return e.Ref + " " + ErrExists.Error() }

// Unwrap makes it an ErrExists.
func (e *RefError) Unwrap() error { return ErrExists }
