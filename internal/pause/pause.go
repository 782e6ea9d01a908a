// Package pause waits without outliving its caller: a retry that is canceled
// must end at once. Whoever waits takes the function as an option where a test
// has to be faster than the clock.
package pause

import (
	"context"
	"time"
)

// For returns after d, or with the context's error as soon as that has ended.
func For(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
