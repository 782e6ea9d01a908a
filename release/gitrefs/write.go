package gitrefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/storage/memory"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// Create writes the tag object and its refs in one push. A server that cannot
// push atomically gets one push a ref, in order.
func (r *Refs) Create(ctx context.Context, t release.Tag, also ...string) (release.Tag, error) {
	id, objects, err := encode(t)
	if err != nil {
		return release.Tag{}, err
	}
	if err := r.push(ctx, id, objects, t.Commit, append([]string{refOf(t.Name)}, also...)); err != nil {
		return release.Tag{}, err
	}
	return r.made(t, id), nil
}

// CreateChosen is List and Create in one conversation: the push's own
// advertisement is what choose sees.
func (r *Refs) CreateChosen(ctx context.Context, choose func([]release.Ref) (release.Tag, []string, error)) (release.Tag, error) {
	var made release.Tag
	err := r.writing(ctx, func(ctx context.Context, session transport.ReceivePackSession, adv *packp.AdvRefs) error {
		if !adv.Capabilities.Supports(capability.Atomic) {
			return errors.ErrUnsupported
		}
		list := make([]release.Ref, 0, len(adv.References))
		for name, id := range adv.References {
			list = append(list, release.Ref{Name: name, ID: id.String()})
		}
		t, also, err := choose(list)
		if err != nil {
			return err
		}
		id, objects, err := encode(t)
		if err != nil {
			return err
		}
		refs := append([]string{refOf(t.Name)}, also...)
		if err := r.free(adv, refs); err != nil {
			return err
		}
		if err := r.send(ctx, session, adv, id, objects, t.Commit, refs); err != nil {
			return err
		}
		made = r.made(t, id)
		return nil
	})
	return made, err
}

// made is t as it can be read from now on.
func (r *Refs) made(t release.Tag, id plumbing.Hash) release.Tag {
	t.ID = id.String()
	t.Message = strings.TrimRight(t.Message, "\n")
	t.At = t.At.UTC().Truncate(time.Second)
	r.keep(id, t)
	return t
}

// encode makes the tag object.
func encode(t release.Tag) (plumbing.Hash, *memory.Storage, error) {
	if len(t.Commit) != 40 || !plumbing.IsHash(t.Commit) {
		return plumbing.ZeroHash, nil, problem.New(problem.Usage, fmt.Sprintf("expected a commit id of 40 hexadecimal digits, found %q", t.Commit),
			`repeat with --commit "$(git rev-parse HEAD)"; repositories with SHA-256 object names are not supported`)
	}
	objects := memory.NewStorage()
	encoded := objects.NewEncodedObject()
	err := (&object.Tag{
		Name:       t.Name,
		Tagger:     object.Signature{Name: release.TaggerName, Email: release.TaggerEmail, When: t.At.UTC()},
		Message:    strings.TrimRight(t.Message, "\n") + "\n",
		TargetType: plumbing.CommitObject,
		Target:     plumbing.NewHash(t.Commit),
	}).Encode(encoded)
	if err != nil {
		return plumbing.ZeroHash, nil, fmt.Errorf("encode the tag object of %s: %w", t.Name, err)
	}
	id, err := objects.SetEncodedObject(encoded)
	if err != nil {
		return plumbing.ZeroHash, nil, fmt.Errorf("keep the tag object of %s: %w", t.Name, err)
	}
	return id, objects, nil
}

// Point creates a ref at an object that the server has: a push with an empty
// pack.
func (r *Refs) Point(ctx context.Context, ref string, t release.Tag) error {
	return r.push(ctx, plumbing.NewHash(t.ID), memory.NewStorage(), t.Commit, []string{ref})
}

// push creates refs at the object id. They exist afterwards all, or as far as
// the error says.
func (r *Refs) push(ctx context.Context, id plumbing.Hash, objects *memory.Storage, commit string, refs []string) error {
	for len(refs) > 0 {
		var rest []string
		err := r.writing(ctx, func(ctx context.Context, session transport.ReceivePackSession, adv *packp.AdvRefs) error {
			if err := r.free(adv, refs); err != nil {
				return err
			}
			now := refs
			if len(refs) > 1 && !adv.Capabilities.Supports(capability.Atomic) {
				now, rest = refs[:1], refs[1:]
			}
			return r.send(ctx, session, adv, id, objects, commit, now)
		})
		if err != nil {
			return err
		}
		refs = rest
	}
	return nil
}

// free checks names, and that none of them exists.
func (r *Refs) free(adv *packp.AdvRefs, refs []string) error {
	for _, ref := range refs {
		if err := plumbing.ReferenceName(ref).Validate(); err != nil {
			return problem.Wrap(err, problem.Usage, fmt.Sprintf("expected the name of a ref, found %q", ref), "release-bot version list")
		}
		if _, ok := adv.References[ref]; ok {
			return r.exists(ref)
		}
	}
	return nil
}

func (r *Refs) exists(ref string) error {
	return problem.Wrap(&release.RefError{Ref: ref}, problem.Conflict, fmt.Sprintf("expected no %s", r.where(ref)), "release-bot version list")
}

// send pushes once and reads the server's report.
func (r *Refs) send(ctx context.Context, session transport.ReceivePackSession, adv *packp.AdvRefs,
	id plumbing.Hash, objects *memory.Storage, commit string, refs []string,
) error {
	var pack bytes.Buffer
	var ids []plumbing.Hash
	for have := range objects.Objects {
		ids = append(ids, have)
	}
	if _, err := packfile.NewEncoder(&pack, objects, false).Encode(ids, 0); err != nil {
		return fmt.Errorf("encode the pack with the tag object: %w", err)
	}
	said := &remoteText{}
	req := packp.NewReferenceUpdateRequest()
	req.Packfile = io.NopCloser(&pack)
	req.Progress = said
	wanted := []capability.Capability{capability.ReportStatus, capability.Sideband64k, capability.Quiet}
	if len(refs) > 1 {
		wanted = append(wanted, capability.Atomic)
	}
	for _, c := range wanted {
		if adv.Capabilities.Supports(c) {
			_ = req.Capabilities.Set(c) // takes no argument, so nothing can be wrong with it
		}
	}
	for _, ref := range refs {
		req.Commands = append(req.Commands, &packp.Command{Name: plumbing.ReferenceName(ref), Old: plumbing.ZeroHash, New: id})
	}
	report, err := session.ReceivePack(ctx, req)
	switch {
	case report != nil && report.Error() != nil:
		return r.rejected(ctx, report, said.String(), commit, refs)
	case err != nil && report == nil && !denied(err):
		// Sent, at least in part, and no answer.
		return r.uncertain(ctx, err)
	case err != nil && report == nil:
		return r.explain(ctx, err)
	case report == nil || len(report.CommandStatuses) < len(refs):
		return r.uncertain(ctx, errors.New("the server did not say what it did"))
	}
	return nil
}

// rejected finds out why a push was not carried out. Only the refs themselves
// can tell a lost race from a lock that another writer held.
func (r *Refs) rejected(ctx context.Context, report *packp.ReportStatus, said, commit string, refs []string) error {
	list, err := r.List(ctx, "refs/")
	if err != nil {
		return r.uncertain(ctx, err)
	}
	at := map[string]bool{}
	for _, ref := range list {
		at[ref.Name] = true
	}
	for _, c := range report.CommandStatuses {
		// A server's rule against one ref may leave the others created, atomic or not.
		if c.Error() != nil && at[c.ReferenceName.String()] {
			return r.exists(c.ReferenceName.String())
		}
	}
	return r.refusal(report, said, commit, refs)
}

// remoteText collects what the server says beside the protocol, bounded.
type remoteText struct{ text bytes.Buffer }

// Write takes everything and keeps the first 4 KiB.
func (t *remoteText) Write(b []byte) (int, error) {
	if room := 4<<10 - t.text.Len(); room > 0 {
		t.text.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

// String joins its lines.
func (t *remoteText) String() string {
	return strings.Join(strings.FieldsFunc(t.text.String(), func(c rune) bool { return c == '\n' || c == '\r' }), "; ")
}
