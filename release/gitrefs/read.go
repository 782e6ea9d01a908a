package gitrefs

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/storage/memory"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// maxPack bounds what a server may send for tag objects: each is some 300 bytes.
const maxPack = 64 << 20

// List returns the refs whose full name begins with prefix.
func (r *Refs) List(ctx context.Context, prefix string) ([]release.Ref, error) {
	var found []release.Ref
	err := r.reading(ctx, func(_ context.Context, _ transport.UploadPackSession, adv *packp.AdvRefs) error {
		for name, id := range adv.References {
			if strings.HasPrefix(name, prefix) {
				found = append(found, release.Ref{Name: name, ID: id.String(), Commit: commitOf(adv, name)})
			}
		}
		return nil
	})
	return found, err
}

// commitOf returns what a ref finally points at: the advertisement peels tags.
func commitOf(adv *packp.AdvRefs, ref string) string {
	if peeled, ok := adv.Peeled[ref]; ok {
		return peeled.String()
	}
	return adv.References[ref].String()
}

// Find returns the tag object at a ref, in one conversation.
func (r *Refs) Find(ctx context.Context, ref string) (release.Tag, error) {
	var found []release.Tag
	err := r.reading(ctx, func(ctx context.Context, session transport.UploadPackSession, adv *packp.AdvRefs) error {
		id, ok := adv.References[ref]
		if !ok {
			return fmt.Errorf("%s: %w", r.where(ref), release.ErrNotFound)
		}
		var err error
		found, err = r.fetch(ctx, session, adv, []release.Ref{{Name: ref, ID: id.String(), Commit: commitOf(adv, ref)}})
		return err
	})
	if err != nil {
		return release.Tag{}, err
	}
	return found[0], nil
}

// Read returns tag objects. All that were not read before come in one fetch.
func (r *Refs) Read(ctx context.Context, refs []release.Ref) ([]release.Tag, error) {
	if tags, ok := r.allCached(refs); ok {
		return tags, nil
	}
	var found []release.Tag
	err := r.reading(ctx, func(ctx context.Context, session transport.UploadPackSession, adv *packp.AdvRefs) error {
		var err error
		found, err = r.fetch(ctx, session, adv, refs)
		return err
	})
	return found, err
}

func (r *Refs) allCached(refs []release.Ref) ([]release.Tag, bool) {
	tags := make([]release.Tag, len(refs))
	for i, ref := range refs {
		t, ok := r.cached(plumbing.NewHash(ref.ID))
		if !ok {
			return nil, false
		}
		tags[i] = named(t, ref.Name)
	}
	return tags, true
}

// named gives a lightweight tag, whose object does not know it, its name.
func named(t release.Tag, ref string) release.Tag {
	if t.Name == "" {
		t.Name = strings.TrimPrefix(ref, "refs/tags/")
	}
	return t
}

// fetch reads the tag objects of refs. The tagged commits are declared as
// present, so that the pack needs to hold the tag objects only.
func (r *Refs) fetch(ctx context.Context, session transport.UploadPackSession, adv *packp.AdvRefs, refs []release.Ref) ([]release.Tag, error) {
	req := packp.NewUploadPackRequest()
	for _, c := range []capability.Capability{capability.Sideband64k, capability.OFSDelta, capability.NoProgress} {
		if adv.Capabilities.Supports(c) {
			_ = req.Capabilities.Set(c) // takes no argument, so nothing can be wrong with it
		}
	}
	for _, ref := range refs {
		id := plumbing.NewHash(ref.ID)
		if _, ok := r.cached(id); ok {
			continue
		}
		peeled, annotated := adv.Peeled[ref.Name]
		if !annotated || adv.References[ref.Name] != id {
			if adv.References[ref.Name] != id {
				return nil, problem.New(problem.Conflict, fmt.Sprintf("expected %s at %s as listed a moment ago, found it elsewhere", r.where(ref.Name), ref.ID),
					"repeat the command; claims and the ledger must never be moved: see who may push tags")
			}
			r.keep(id, release.Tag{ID: ref.ID, Commit: ref.ID})
			continue
		}
		req.Wants = append(req.Wants, id)
		req.Haves = append(req.Haves, peeled)
	}
	if len(req.Wants) > 0 {
		if err := r.receive(ctx, session, req); err != nil {
			return nil, err
		}
	}
	tags, ok := r.allCached(refs)
	if !ok {
		return nil, problem.New(problem.Unavailable, fmt.Sprintf("expected %d tag objects from %s, found fewer in its answer", len(refs), r.at.shown),
			"repeat the command; if that stays, check the repository: git fsck --tags")
	}
	return tags, nil
}

// receive runs one fetch and keeps the tag objects of its pack.
func (r *Refs) receive(ctx context.Context, session transport.UploadPackSession, req *packp.UploadPackRequest) error {
	answer, err := session.UploadPack(ctx, req)
	if err != nil {
		return r.explain(ctx, err)
	}
	defer answer.Close()
	var pack io.Reader = answer
	if req.Capabilities.Supports(capability.Sideband64k) {
		pack = sideband.NewDemuxer(sideband.Sideband64k, answer)
	}
	objects := memory.NewStorage()
	if err := packfile.UpdateObjectStorage(objects, io.LimitReader(pack, maxPack)); err != nil {
		return r.explain(ctx, err)
	}
	for id, encoded := range objects.Tags {
		tag := &object.Tag{}
		if err := tag.Decode(encoded); err != nil {
			return r.explain(ctx, err)
		}
		r.keep(id, tagOf(tag))
	}
	return nil
}

func tagOf(t *object.Tag) release.Tag {
	return release.Tag{
		ID:      t.Hash.String(),
		Name:    t.Name,
		Commit:  t.Target.String(),
		Message: strings.TrimRight(t.Message, "\n"),
		At:      t.Tagger.When.UTC(),
	}
}
