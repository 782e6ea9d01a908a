package deploy

import (
	"fmt"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Window is a daily span of time in which a host may update itself; the zero
// value is always open. It may go over midnight.
type Window struct {
	from, to int // minutes of the day; from == to is the whole day
	zone     *time.Location
	text     string
}

// ParseWindow reads "02:00-05:00" (UTC) or "02:00-05:00 Europe/Prague".
func ParseWindow(text string) (Window, error) {
	wrong := func() error {
		return problem.New(problem.Usage, fmt.Sprintf("The window %q cannot be read.", text), `Write it as "02:00-05:00" (UTC) or "02:00-05:00 Europe/Prague".`)
	}
	span, zone, _ := strings.Cut(strings.TrimSpace(text), " ")
	from, to, ok := strings.Cut(span, "-")
	if !ok {
		return Window{}, wrong()
	}
	begin, err := time.Parse("15:04", from)
	if err != nil {
		return Window{}, wrong()
	}
	end, err := time.Parse("15:04", to)
	if err != nil {
		return Window{}, wrong()
	}
	location, err := time.LoadLocation(strings.TrimSpace(zone)) // UTC when empty
	if err != nil {
		return Window{}, wrong()
	}
	w := Window{from: begin.Hour()*60 + begin.Minute(), to: end.Hour()*60 + end.Minute(), zone: location, text: strings.TrimSpace(text)}
	if open := (w.to - w.from + 24*60) % (24 * 60); open != 0 && open < int(tick.Minutes()) {
		return Window{}, problem.New(problem.Usage, fmt.Sprintf("The window %q is open for %d minutes; the timer comes by every %.0f.", text, open, tick.Minutes()), "Make it longer.")
	}
	return w, nil
}

// tick is how often the timer of the bundle runs an update.
const tick = 15 * time.Minute

// Contains reports whether the window is open at a moment.
func (w Window) Contains(at time.Time) bool {
	if w.zone == nil || w.from == w.to {
		return true
	}
	at = at.In(w.zone)
	minute := at.Hour()*60 + at.Minute()
	if w.from < w.to {
		return minute >= w.from && minute < w.to
	}
	return minute >= w.from || minute < w.to
}

// String returns the window as it was written.
func (w Window) String() string { return w.text }
