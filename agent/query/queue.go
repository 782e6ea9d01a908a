package query

import (
	"context"
	"slices"
	"sync"
)

// queue decides whose statement runs next. Each user has a line of their own
// and the lines take turns, so ten heavy statements of one user delay that
// user's eleventh and nobody else's first.
type queue struct {
	mu      sync.Mutex
	free    int
	size    int
	running map[string]int
	lines   map[string][]*ticket
	turns   []string // users with a line, whose turn comes first in front
}

type ticket struct {
	user    string
	most    int           // statements of this user at once; 0: no bound
	granted chan struct{} // closed when it may run
}

// mostWaiting is how many statements of one user may wait: more than people and
// programs have use for, few enough that their texts fit into memory.
const mostWaiting = 500

func newQueue(size int) *queue {
	return &queue{free: size, size: size, running: make(map[string]int), lines: make(map[string][]*ticket)}
}

// enter waits for a place. leave gives it back. A user whose line is too long
// already is refused.
func (q *queue) enter(ctx context.Context, user string, most int) (leave func(), err error) {
	t := &ticket{user: user, most: most, granted: make(chan struct{})}
	q.mu.Lock()
	if len(q.lines[user]) >= mostWaiting {
		q.mu.Unlock()
		return nil, tooManyWaiting()
	}
	if len(q.lines[user]) == 0 {
		q.turns = append(q.turns, user)
	}
	q.lines[user] = append(q.lines[user], t)
	q.advance()
	q.mu.Unlock()
	select {
	case <-t.granted:
		return func() { q.leave(user) }, nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-t.granted: // in the same moment
		q.release(user)
	default:
		q.remove(t)
	}
	return nil, ctx.Err()
}

func (q *queue) leave(user string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.release(user)
}

func (q *queue) release(user string) {
	q.free++
	if q.running[user]--; q.running[user] == 0 {
		delete(q.running, user)
	}
	q.advance()
}

// advance lets in whom it can, one user after the other; the caller holds mu.
func (q *queue) advance() {
	for q.free > 0 {
		at := slices.IndexFunc(q.turns, func(user string) bool {
			most := q.lines[user][0].most
			return most == 0 || q.running[user] < most
		})
		if at < 0 {
			return
		}
		user := q.turns[at]
		q.turns = slices.Delete(q.turns, at, at+1)
		line := q.lines[user]
		t := line[0]
		if len(line) == 1 {
			delete(q.lines, user)
		} else {
			q.lines[user] = line[1:]
			q.turns = append(q.turns, user)
		}
		q.free--
		q.running[user]++
		close(t.granted)
	}
}

// remove takes a ticket out of its line; the caller holds mu.
func (q *queue) remove(t *ticket) {
	line := slices.DeleteFunc(slices.Clone(q.lines[t.user]), func(other *ticket) bool { return other == t })
	if len(line) > 0 {
		q.lines[t.user] = line
		q.advance() // the one behind may have another bound
		return
	}
	delete(q.lines, t.user)
	q.turns = slices.DeleteFunc(q.turns, func(user string) bool { return user == t.user })
}

func (q *queue) inUse() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.size - q.free
}
