// Package gitrefs keeps release.Refs in any git repository, over the git
// protocol itself: a folder, https, ssh or git://.
//
// Nothing is cloned. A listing is the server's advertisement of refs. A write is
// one push of a pack that holds just the tag object, with commands that create
// refs and never move them; where the server is able to (git is), all of them
// are created or none. Tag objects are read by a fetch that names the tagged
// commits as present, so that the answer holds the tag objects alone, however
// big the repository is and whatever the server lets clients filter.
//
// location.go reads where the repository is and how to log in, session.go opens
// conversations, read.go and write.go are the two halves of release.Refs, and
// errors.go says what went wrong and what mends it.
package gitrefs

import (
	"cmp"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/transport"

	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Options are what a location does not say.
type Options struct {
	// Token logs in to the location's host, over https or to this machine only. A
	// password in the location wins.
	Token redact.Secret
	// AgentSocket is the ssh-agent that holds the keys: the only way to log in by
	// ssh.
	AgentSocket string
	// KnownHosts are the files that ssh hosts are known by (default
	// ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts). A host that is in none
	// is refused.
	KnownHosts []string
	// Timeout ends one conversation with the server (default one minute).
	Timeout time.Duration
	Log     *slog.Logger // default: nothing is logged
}

// Refs are the refs of one repository. It is safe for concurrent use, and holds
// no connection between calls.
type Refs struct {
	at      location
	client  transport.Transport
	auth    transport.AuthMethod
	timeout time.Duration
	log     *slog.Logger

	mu   sync.Mutex
	tags map[plumbing.Hash]release.Tag // read so far: objects never change
}

var (
	_ release.Refs    = (*Refs)(nil)
	_ release.Chooser = (*Refs)(nil)
)

// Open returns the refs of the repository at location: a path, file://,
// https://, ssh://, user@host:path or git://. It connects to nothing.
func Open(location string, o Options) (*Refs, error) {
	at, err := parseLocation(location, o.Token)
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Refs{
		at:      at,
		timeout: cmp.Or(o.Timeout, time.Minute),
		log:     o.Log,
		tags:    map[plumbing.Hash]release.Tag{},
	}
	r.connectBy(o)
	return r, nil
}

// String names the repository, without credentials.
func (r *Refs) String() string { return r.at.shown }

func (r *Refs) cached(id plumbing.Hash) (release.Tag, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.tags[id]
	return t, ok
}

func (r *Refs) keep(id plumbing.Hash, t release.Tag) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tags[id] = t
}

// refOf is the full name of a tag.
func refOf(tag string) string { return "refs/tags/" + tag }

func (r *Refs) where(ref string) string { return fmt.Sprintf("%s of %s", ref, r.at.shown) }
