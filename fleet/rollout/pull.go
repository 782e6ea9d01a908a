package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Pull delivers by the fleet's git repository: each member has a file
// DIR/NAME.json there, which its host reads on its timer. Members that are sent
// for at the same moment share a commit.
type Pull struct {
	repo *Repository
	dir  string

	writing sync.Mutex // one commit at a time
	mu      sync.Mutex // of what follows
	waiting map[batch][]*change
	last    *revision
	lastAt  time.Time
}

var _ Deliverer = (*Pull)(nil)

// NewPull returns the delivery by files below dir of a repository.
func NewPull(repo *Repository, dir string) *Pull {
	return &Pull{repo: repo, dir: dir, waiting: map[batch][]*change{}}
}

// gather is how long a commit waits for others that go with it.
const gather = 300 * time.Millisecond

// batch is what the changes of one commit have in common.
type batch struct{ rollout, wave, does string }

type change struct {
	member  string
	content []byte // nil removes the file
	done    chan error
}

func (p *Pull) file(member string) string { return path.Join(p.dir, member+".json") }

// Look reads the member's file.
func (p *Pull) Look(ctx context.Context, j Job) (deploy.Image, *deploy.Desired, error) {
	at, err := p.recent(ctx)
	if err != nil {
		return deploy.Image{}, nil, err
	}
	text, found, err := at.file(p.file(j.Instance.Name))
	if err != nil || !found {
		return deploy.Image{}, nil, err
	}
	var d deploy.Desired
	if err := json.Unmarshal(text, &d); err != nil || d.Tag == "" {
		return deploy.Image{}, nil, problem.New(problem.Unprocessable,
			fmt.Sprintf(`expected {"tag":"…","digest":"sha256:…"} in %s of %s, found something else`, p.file(j.Instance.Name), p.repo),
			"Correct the file or remove it, then: agnesctl fleet rollout --resume")
	}
	return deploy.Image{}, &d, nil
}

// recent is the branch as it was a moment ago: many members look at once.
func (p *Pull) recent(ctx context.Context) (*revision, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last != nil && time.Since(p.lastAt) < time.Second {
		return p.last, nil
	}
	at, err := p.repo.fetch(ctx)
	if err != nil {
		return nil, err
	}
	p.last, p.lastAt = at, time.Now()
	return at, nil
}

// Take writes the target into the member's file, with the time: a host that could
// not try it before tries once more.
func (p *Pull) Take(ctx context.Context, j Job) Outcome {
	return p.set(ctx, j, "to "+j.Target.Name(), &deploy.Desired{Tag: pinned(j.Target), Digest: j.Target.Digest, AskedAt: j.Asked.UTC().Truncate(time.Second)})
}

// Settle has nothing to finish: the member's host does by itself.
func (p *Pull) Settle(context.Context, Job) Outcome { return Outcome{What: Delivered} }

// Back writes into the member's file what was there. Where there was none, or one
// that only followed a channel, or had the target already while the member had
// not, that could bring the target: the member is pinned to the version that it
// ran.
func (p *Pull) Back(ctx context.Context, j Job) Outcome {
	desired, was := j.Before.Desired, j.Before.Image
	moves := desired == nil || desired.Digest == "" || desired.Digest == j.Target.Digest && !j.Recall
	if moves && was.Version != "" {
		desired = &deploy.Desired{Tag: pinned(was), Digest: was.Digest}
	}
	return p.set(ctx, j, "back", desired)
}

// pinned is the tag of an image's version, which no release moves.
func pinned(i deploy.Image) string {
	switch {
	case i.Version == "":
		return i.Tag
	case i.Channel == "":
		return i.Version
	}
	return i.Channel + "-" + i.Version
}

func (p *Pull) set(ctx context.Context, j Job, does string, d *deploy.Desired) Outcome {
	var content []byte
	if d != nil {
		text, err := json.Marshal(d)
		if err != nil {
			return Outcome{What: Doubtful, Detail: err.Error()}
		}
		content = append(text, '\n')
	}
	c := &change{member: j.Instance.Name, content: content, done: make(chan error, 1)}
	if err := p.join(ctx, batch{j.Rollout, j.Wave, does}, c); err != nil {
		return Outcome{What: Doubtful, Detail: "what it shall run could not be written to the fleet's repository: " + err.Error()}
	}
	return Outcome{What: Delivered}
}

// join adds a change to the commit that is being gathered and waits for it. One
// that nobody waits for any more is taken out again, unless it is on its way.
func (p *Pull) join(ctx context.Context, b batch, c *change) error {
	p.mu.Lock()
	first := len(p.waiting[b]) == 0
	p.waiting[b] = append(p.waiting[b], c)
	p.mu.Unlock()
	if first {
		go p.write(context.WithoutCancel(ctx), b)
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
	}
	p.mu.Lock()
	at := slices.Index(p.waiting[b], c)
	if at >= 0 {
		p.waiting[b][at].member = ""
	}
	p.mu.Unlock()
	if at >= 0 {
		return ctx.Err()
	}
	return <-c.done
}

// write makes the commit of a batch.
func (p *Pull) write(ctx context.Context, b batch) {
	_ = pause.For(ctx, gather) // never ends before
	p.writing.Lock()
	defer p.writing.Unlock()
	p.mu.Lock()
	changes := slices.DeleteFunc(p.waiting[b], func(c *change) bool { return c.member == "" })
	delete(p.waiting, b)
	p.last = nil
	p.mu.Unlock()
	if len(changes) == 0 {
		return
	}
	files, members := map[string][]byte{}, []string{}
	for _, c := range changes {
		files[p.file(c.member)] = c.content
		members = append(members, c.member)
	}
	slices.Sort(members)
	message := fmt.Sprintf("rollout %s: wave %s %s\n\nMembers: %s\n", b.rollout, b.wave, b.does, strings.Join(members, ", "))
	err := p.repo.Change(ctx, files, message)
	for _, c := range changes {
		c.done <- err
	}
}
