package watch

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// pollers is how many instances are asked at once after the first sweep.
const pollers = 128

// Poll asks every instance once, then each again whenever Prober.Schedule says,
// until ctx ends, and hands each result on, one at a time. When the machine cannot
// keep up, probes come later, never more of them at once. The error is the first
// sweep's; an end of ctx after it is none.
func Poll(ctx context.Context, p *fleet.Prober, instances []fleet.Instance, each func(fleet.Result)) error {
	if _, err := p.Sweep(ctx, instances, each); err != nil {
		return err
	}
	q := make(queue, 0, len(instances))
	for i, in := range instances {
		q = append(q, appointment{p.Schedule(time.Now(), in), i})
	}
	heap.Init(&q)
	var (
		mu       sync.Mutex
		workers  sync.WaitGroup
		due      = make(chan int)
		finished = make(chan int)
	)
	for range min(pollers, len(instances)) {
		workers.Go(func() {
			for i := range due {
				r := p.One(ctx, instances[i])
				if ctx.Err() == nil {
					mu.Lock()
					each(r)
					mu.Unlock()
				}
				select {
				case finished <- i:
				case <-ctx.Done():
				}
			}
		})
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		var ready chan<- int // nil, which is never ready, while nobody is due
		head := 0
		if len(q) > 0 {
			if wait := time.Until(q[0].at); wait > 0 {
				timer.Reset(wait)
			} else {
				ready, head = due, q[0].instance
			}
		}
		select {
		case ready <- head:
			heap.Pop(&q)
		case i := <-finished:
			heap.Push(&q, appointment{p.Schedule(time.Now(), instances[i]), i})
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	close(due)
	workers.Wait()
	return nil
}

// appointment is when an instance is due.
type appointment struct {
	at       time.Time
	instance int
}

// queue is a heap of appointments, the next one first.
type queue []appointment

// Len, Less, Swap, Push and Pop serve container/heap.
func (q queue) Len() int { return len(q) }

// Less serves container/heap.
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }

// Swap serves container/heap.
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push serves container/heap.
func (q *queue) Push(x any) { *q = append(*q, x.(appointment)) }

// Pop serves container/heap.
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}
