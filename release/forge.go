package release

import (
	"context"
	"time"
)

// Forge is what the code host offers besides refs.
type Forge interface {
	// Alert opens an issue, or finds the open one that holds marker in its text
	// and leaves it as it is. Calling it again gives the same issue.
	Alert(ctx context.Context, a Alert) (url string, err error)
	// Settle closes the open issue that holds marker in its text, with a further
	// line at its end. The url is empty when there is none.
	Settle(ctx context.Context, marker, line string) (url string, err error)
	// Release creates the host's release of a version, or brings the existing one's
	// text up to date.
	Release(ctx context.Context, r Page) (url string, err error)
	// Changes returns the merged pull requests of the given commits, by commit.
	Changes(ctx context.Context, commits []string) (map[string]Change, error)
	Ancestry
}

// Ancestry knows the history of commits.
type Ancestry interface {
	// Descends reports whether commit has ancestor in its history, or ErrNotFound
	// where that cannot be told.
	Descends(ctx context.Context, ancestor, commit string) (bool, error)
}

// Alert is an issue that somebody must see.
type Alert struct {
	Marker string // hidden text that identifies the incident
	Title  string
	Body   string // Markdown, without the marker
	Labels []string
}

// Page is the text beside a version on the code host.
type Page struct {
	Version    Version
	Prerelease bool
	Body       string // Markdown
}

// Change is a merged pull request.
type Change struct {
	Number int
	Title  string
	Author string
	Labels []string
	URL    string
}

// Packages is the code host's list of what the registry holds: the only place
// where versions of an image can be deleted.
type Packages interface {
	// Versions lists all versions of the package, every page of 100.
	Versions(ctx context.Context) ([]PackageVersion, error)
	// Version reads one again, or ErrNotFound when it is gone.
	Version(ctx context.Context, id int64) (PackageVersion, error)
	// Delete removes a version with all its tags. ErrNotFound: it is gone.
	// ErrRetained: the host keeps it. It waits as the host asks (Retry-After)
	// and within its own budget of writes a minute.
	Delete(ctx context.Context, id int64) error
	// Restore brings a deleted version back within the host's 30 days.
	Restore(ctx context.Context, id int64) error
}

// PackageVersion is one manifest as the package host lists it. UpdatedAt is not
// here on purpose: it does not change when a tag is added.
type PackageVersion struct {
	ID        int64     `json:"id"`
	Digest    string    `json:"digest"`
	Tags      []string  `json:"tags"`
	CreatedAt time.Time `json:"created_at"`
}
