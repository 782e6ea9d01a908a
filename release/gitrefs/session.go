package gitrefs

import (
	"context"
	"errors"
	"io"

	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/transport"
)

// reading calls do with the server's advertisement of refs, in a conversation in
// which objects can be fetched.
func (r *Refs) reading(ctx context.Context, do func(context.Context, transport.UploadPackSession, *packp.AdvRefs) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	session, err := opened(ctx, func() (transport.UploadPackSession, error) {
		return r.client.NewUploadPackSession(r.at.endpoint, r.auth)
	})
	if err != nil {
		return r.explain(ctx, err)
	}
	defer r.leave(session)
	refs, err := session.AdvertisedReferencesContext(ctx)
	if errors.Is(err, transport.ErrEmptyRemoteRepository) {
		refs, err = packp.NewAdvRefs(), nil
	}
	if err != nil {
		return r.explain(ctx, err)
	}
	return do(ctx, session, refs)
}

// writing does the same for one push.
func (r *Refs) writing(ctx context.Context, do func(context.Context, transport.ReceivePackSession, *packp.AdvRefs) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	session, err := opened(ctx, func() (transport.ReceivePackSession, error) {
		return r.client.NewReceivePackSession(r.at.endpoint, r.auth)
	})
	if err != nil {
		return r.explain(ctx, err)
	}
	defer r.leave(session)
	refs, err := session.AdvertisedReferencesContext(ctx)
	if err != nil && !errors.Is(err, transport.ErrEmptyRemoteRepository) {
		return r.explain(ctx, err)
	}
	if refs == nil {
		refs = packp.NewAdvRefs()
	}
	return do(ctx, session, refs)
}

func (r *Refs) leave(s io.Closer) {
	if err := s.Close(); err != nil {
		r.log.Debug("the git conversation did not end well", "repository", r.at.shown, "err", r.scrub(err))
	}
}

// opened connects, and stops waiting for that when ctx ends: the transports'
// own connects know no context.
func opened[S io.Closer](ctx context.Context, open func() (S, error)) (S, error) {
	type result struct {
		session S
		err     error
	}
	done := make(chan result, 1)
	go func() {
		s, err := open()
		done <- result{s, err}
	}()
	select {
	case got := <-done:
		return got.session, got.err
	case <-ctx.Done():
		go func() {
			if got := <-done; got.err == nil {
				_ = got.session.Close() // nobody is there to hear of it
			}
		}()
		var none S
		return none, ctx.Err()
	}
}
