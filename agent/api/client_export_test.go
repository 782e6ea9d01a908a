package api

import (
	"context"
	"time"
)

// EncodeRequest is encodeRequest for tests.
func EncodeRequest(req any) ([]byte, error) { return encodeRequest(req) }

// WithoutPauses makes retries and polling immediate and tells of each pause.
func WithoutPauses(seen func(time.Duration)) Option {
	return func(c *Client) {
		c.pause = func(ctx context.Context, d time.Duration) error {
			if seen != nil {
				seen(d)
			}
			return ctx.Err()
		}
	}
}

// WithMaxAnswer bounds JSON answers.
func WithMaxAnswer(n int64) Option { return func(c *Client) { c.maxAnswer = n } }

// WithIdleAfter bounds the silence of an event stream.
func WithIdleAfter(d time.Duration) Option { return func(c *Client) { c.idleAfter = d } }
