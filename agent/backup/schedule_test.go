package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func parse(t *testing.T, text, seed string) Schedule {
	t.Helper()
	s, err := ParseSchedule(text, seed)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSchedules(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	daily, hourly := parse(t, "daily 03:00", "a"), parse(t, "hourly", "a")
	first := daily.Next(at)
	if slot := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC); first.Before(slot) || first.Sub(slot) >= dailySpread {
		t.Errorf("daily: %s", first)
	}
	if got := daily.Next(first); got.Sub(first) != 24*time.Hour {
		t.Errorf("a day after %s comes %s", first, got)
	}
	if got := daily.Next(first.Add(-time.Nanosecond)); !got.Equal(first) {
		t.Errorf("just before %s comes %s", first, got)
	}
	if got := hourly.Next(at); got.Sub(at) > time.Hour || got.Minute() >= 10 {
		t.Errorf("hourly: %s", got)
	}
	if got := daily.Missed(first.Add(-time.Hour), first.Add(49*time.Hour)); got != 3 {
		t.Errorf("%d missed, want 3", got)
	}
	if !parse(t, "off", "a").Off() || parse(t, "off", "a").Missed(at, at.Add(1000*time.Hour)) != 0 {
		t.Error("off is not off")
	}
	offsets := map[time.Time]bool{}
	for n := range 50 {
		offsets[parse(t, "daily 03:00", fmt.Sprint(n)).Next(at)] = true
	}
	if len(offsets) < 40 {
		t.Errorf("50 instances have only %d times", len(offsets))
	}
	for _, text := range []string{"", "daily", "daily 3", "daily 24:00", "daily 03:00 UTC", "hourly 5", "off now", "weekly", "03:00"} {
		if _, err := ParseSchedule(text, ""); !problem.Is(err, problem.Usage) || problem.As(err).Hint == "" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A month in which the instance is off for three days and the disk is full for
// one. The clock is simulated.
func TestAMonthOfScheduledBackups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		schedule, begin := parse(t, "daily 03:00", "seed"), time.Now()
		var made, attempts []time.Time
		last := begin
		broken := func() bool { return time.Since(begin) > 20*24*time.Hour && time.Since(begin) < 21*24*time.Hour }
		run := func(d time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			Scheduler{
				Schedule: func() Schedule { return schedule },
				Last:     func() time.Time { return last },
				Make: func(context.Context) error {
					attempts = append(attempts, time.Now())
					if broken() {
						return errors.New("no space")
					}
					last = time.Now()
					made = append(made, last)
					return nil
				},
			}.Run(ctx)
		}
		wait := func(d time.Duration) {
			if err := pause.For(t.Context(), d); err != nil {
				t.Fatal(err)
			}
		}
		const day = 24 * time.Hour
		run(10 * day)
		if len(made) != 10 {
			t.Errorf("%d backups in 10 days", len(made))
		}
		for _, at := range made {
			if slot := at.Truncate(day).Add(3 * time.Hour); at.Before(slot) || at.Sub(slot) > dailySpread+lookEvery {
				t.Errorf("made at %s", at)
			}
		}
		wait(3*day + time.Hour) // the machine is off
		on := time.Now()
		run(time.Hour)
		if len(made) != 11 || made[10].Sub(on) > 2*lookEvery {
			t.Errorf("after three days off: %d backups, want one more, soon", len(made)-10)
		}
		run(7*day - 2*time.Hour)
		before, tries := len(made), len(attempts)
		for !broken() {
			wait(time.Minute)
		}
		run(day + 2*time.Hour)
		if n := len(attempts) - tries; n < 3 || n > 12 {
			t.Errorf("%d attempts while nothing could be made for a day", n)
		}
		if len(made) <= before {
			t.Error("nothing was made after the disk had room again")
		}
		run(10 * day)
		if n := len(made); n < 27 || n > 30 {
			t.Errorf("%d backups in a month with three days off and one that failed", n)
		}
		schedule = Schedule{}
		n := len(made)
		run(3 * day)
		if len(made) != n {
			t.Error("backups were made though they are off")
		}
		schedule = parse(t, "hourly", "seed")
		run(day)
		if got := len(made) - n; got < 24 || got > 25 {
			t.Errorf("%d backups in a day, hourly", got)
		}
	})
}

func TestWhichBackupsStay(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	var list []Info
	add := func(age time.Duration, scheduled bool) {
		at := now.Add(-age)
		list = append(list, Info{Manifest: Manifest{ID: fmt.Sprintf("%s-%t", at.Format(stampLayout), scheduled), CreatedAt: at, Scheduled: scheduled}})
	}
	for h := range 24 * 20 { // hourly for 20 days
		add(time.Duration(h)*time.Hour+time.Minute, true)
	}
	for d := range 20 {
		add(time.Duration(d)*24*time.Hour+2*time.Minute, false)
	}
	slices.SortFunc(list, func(a, b Info) int { return b.CreatedAt.Compare(a.CreatedAt) })
	stay := func(r Retention) (scheduled, asked []string) {
		gone := map[string]bool{}
		for _, b := range r.Expired(list, now) {
			gone[b.ID] = true
		}
		for _, b := range list {
			switch {
			case gone[b.ID]:
			case b.Scheduled:
				scheduled = append(scheduled, b.ID)
			default:
				asked = append(asked, b.ID)
			}
		}
		return scheduled, asked
	}
	scheduled, asked := stay(Retention{Keep: 7})
	// 24 of the last day, of which 12 are today and 12 yesterday, and five days more.
	if len(scheduled) != 24+5 || len(asked) != 7 {
		t.Errorf("%d scheduled ones stay and %d others, want 29 and 7:\n%s", len(scheduled), len(asked), strings.Join(scheduled, "\n"))
	}
	if scheduled[0] != list[0].ID {
		t.Error("the newest is gone")
	}
	none := func(string) bool { return false }
	if s, a := stay(Retention{Keep: 7, Offsite: none}); len(s) != 24+12 || len(a) != 14 {
		t.Errorf("without copies elsewhere %d and %d stay, want 36 and 14", len(s), len(a))
	}
	if s, a := stay(Retention{Keep: 7, Offsite: func(string) bool { return true }}); len(s) != 29 || len(a) != 7 {
		t.Errorf("with copies elsewhere %d and %d stay, want 29 and 7", len(s), len(a))
	}
	list = list[len(list)-1:]
	if s, a := stay(Retention{Keep: 1}); len(s)+len(a) != 1 {
		t.Error("the only one, an old one, is gone")
	}
}

// A clock that was ahead for a moment leaves a backup of the year 2036.
func TestAClockThatWasAheadStopsNoBackup(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	daily := parse(t, "daily 03:00", "a")
	for last, want := range map[time.Time]bool{
		now.Add(-48 * time.Hour): true, now.Add(-time.Hour): false, now.Add(tolerance): false, now.AddDate(10, 0, 0): true,
	} {
		if got := daily.Due(last, now); got != want {
			t.Errorf("after one of %s due %t at %s, want %t", last, got, now, want)
		}
	}
	if (Schedule{}).Due(now.AddDate(10, 0, 0), now) {
		t.Error("off is not off")
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Hour)
		defer cancel()
		last, made := time.Now().AddDate(10, 0, 0), 0
		Scheduler{
			Schedule: func() Schedule { return parse(t, "hourly", "seed") },
			Last:     func() time.Time { return last },
			Make:     func(context.Context) error { last, made = time.Now(), made+1; return nil },
		}.Run(ctx)
		if made < 10 || made > 12 {
			t.Errorf("%d backups in ten hours, want one at once and then one each hour", made)
		}
	})
}

func TestABackupOfTheFutureStaysAndPushesNoneOut(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for _, scheduled := range []bool{true, false} {
		var list []Info
		for n, at := range []time.Time{now.AddDate(10, 0, 0), now.AddDate(9, 0, 0), now.AddDate(0, 0, -2), now.AddDate(0, 0, -3)} {
			list = append(list, Info{Manifest: Manifest{ID: fmt.Sprint(n), CreatedAt: at, Scheduled: scheduled}})
		}
		var gone []string
		for _, b := range (Retention{Keep: 1}).Expired(list, now) {
			gone = append(gone, b.ID)
		}
		if !slices.Equal(gone, []string{"3"}) {
			t.Errorf("scheduled %t: gone %v, want the older of the two that are not ahead", scheduled, gone)
		}
	}
}

func TestRetentionDeletesFilesAndOldKeptFolders(t *testing.T) {
	t.Parallel()
	d := newData(t, "g1")
	a, b := mustCreate(t, d), mustCreate(t, d)
	if _, err := Restore(t.Context(), d, a.Path, RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if gone, err := Prune(d, Retention{Keep: 2}, now.Add(29*24*time.Hour)); err != nil || len(gone) != 0 {
		t.Errorf("gone %v, %v", gone, err)
	}
	wantKeptFolders := func(want int) {
		t.Helper()
		if kept, err := keptFolders(d); err != nil || len(kept) != want {
			t.Errorf("kept folders %v, %v; want %d", kept, err, want)
		}
	}
	wantKeptFolders(1)
	gone, err := Prune(d, Retention{Keep: 1}, now.Add(31*24*time.Hour))
	if err != nil || len(gone) != 1 || gone[0] == max(a.ID, b.ID) {
		t.Errorf("gone %v, %v; want the older one of %s and %s", gone, err, a.ID, b.ID)
	}
	wantKeptFolders(0)
	wantGeneration(t, d, "g1")
}
