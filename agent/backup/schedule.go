package backup

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Schedule says when backups are made. The zero Schedule makes none.
type Schedule struct {
	every  time.Duration
	offset time.Duration // after midnight UTC, jitter included
}

// How far an instance's own offset spreads the backups of a fleet.
const (
	dailySpread  = 30 * time.Minute
	hourlySpread = 10 * time.Minute
)

// ParseSchedule reads "daily HH:MM" (UTC), "hourly" or "off". The seed, an
// instance's ID, fixes how long after the full time its backups are made, so
// that many instances on one disk or network do not make them at once.
func ParseSchedule(text, seed string) (Schedule, error) {
	jitter := func(spread time.Duration) time.Duration {
		h := fnv.New64a()
		_, _ = h.Write([]byte(seed))
		return time.Duration(h.Sum64() % uint64(spread)).Truncate(time.Second)
	}
	switch word, at, _ := strings.Cut(strings.TrimSpace(text), " "); word {
	case "off":
		if at == "" {
			return Schedule{}, nil
		}
	case "hourly":
		if at == "" {
			return Schedule{every: time.Hour, offset: jitter(hourlySpread)}, nil
		}
	case "daily":
		if t, err := time.Parse("15:04", strings.TrimSpace(at)); err == nil {
			midnight := time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
			return Schedule{every: 24 * time.Hour, offset: t.Sub(midnight) + jitter(dailySpread)}, nil
		}
	}
	return Schedule{}, problem.New(problem.Usage, fmt.Sprintf("The backup schedule is %q; expected daily HH:MM (UTC), hourly or off.", text),
		`Set AGNES_BACKUP_SCHEDULE to one of these, such as "daily 03:00", or leave it out.`)
}

// Off reports whether no backups are made.
func (s Schedule) Off() bool { return s.every == 0 }

// Every is the time between two backups.
func (s Schedule) Every() time.Duration { return s.every }

// tolerance is how far clocks may be apart before a time counts as wrong.
const tolerance = 10 * time.Minute

// Ahead reports whether t cannot be true: it is later than now, because it was
// taken while the clock was wrong.
func Ahead(t, now time.Time) bool { return t.After(now.Add(tolerance)) }

// Due reports whether a backup is due by now, where the last one was made at
// last. One that is Ahead says nothing about when it was made: the next is due.
func (s Schedule) Due(last, now time.Time) bool {
	return !s.Off() && (Ahead(last, now) || !now.Before(s.Next(last)))
}

// Next returns the first time after t at which a backup is due.
func (s Schedule) Next(t time.Time) time.Time {
	due := t.UTC().Truncate(24 * time.Hour).Add(s.offset - 24*time.Hour)
	for !due.After(t) {
		due = due.Add(s.every)
	}
	return due
}

// Missed returns how many backups were due after last and are not made by now.
func (s Schedule) Missed(last, now time.Time) int {
	if s.Off() {
		return 0
	}
	n := 0
	for due := s.Next(last); !due.After(now) && n < 1000; due = s.Next(due) {
		n++
	}
	return n
}

// Scheduler makes backups when they are due. A backup that was missed, because
// the machine was off, is made up for once; one that failed is tried again,
// each time after a longer pause.
type Scheduler struct {
	Schedule func() Schedule  // asked again each time
	Last     func() time.Time // when the last good backup was made
	Make     func(ctx context.Context) error
}

const (
	lookEvery  = time.Minute // so that a changed schedule, clock or a machine's sleep is noticed
	retryAfter = 10 * time.Minute
)

// Run returns when ctx ends.
func (s Scheduler) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	failures, pause, failed := 0, time.Duration(0), time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		schedule, now := s.Schedule(), time.Now().Round(0) // by the wall clock: it goes on while a machine sleeps
		if !schedule.Due(s.Last(), now) || now.Before(failed.Add(pause)) && !Ahead(failed, now) {
			continue
		}
		if err := s.Make(ctx); err == nil {
			failures, pause = 0, 0
			continue
		}
		pause = min(retryAfter<<min(failures, 16), schedule.Every())
		failures, failed = failures+1, time.Now().Round(0)
	}
}
