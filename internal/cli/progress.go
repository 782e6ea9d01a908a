package cli

import (
	"time"

	"github.com/schollz/progressbar/v3"
)

const progressSteps = 1000

// Progress is a bar on standard error while a command works. Where standard
// error is no terminal it draws nothing.
type Progress struct {
	bar *progressbar.ProgressBar
}

// NewProgress starts a bar.
func NewProgress(env Env, what string) *Progress {
	if !IsTerminal(env.Stderr) {
		return &Progress{}
	}
	return &Progress{bar: progressbar.NewOptions(progressSteps,
		progressbar.OptionSetWriter(env.Stderr),
		progressbar.OptionSetDescription(Sanitize(what)),
		progressbar.OptionSetWidth(30),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionThrottle(50*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)}
}

// Drawn reports whether a person sees the bar; a command may print lines
// otherwise.
func (p *Progress) Drawn() bool { return p.bar != nil }

// Set moves the bar to a fraction of 0 to 1 and says what is going on. A bar
// that cannot be drawn is no reason to fail.
func (p *Progress) Set(fraction float64, what string) {
	if p.bar == nil {
		return
	}
	p.bar.Describe(Sanitize(what))
	_ = p.bar.Set(int(min(max(fraction, 0), 1) * (progressSteps - 1)))
}

// Close removes the bar.
func (p *Progress) Close() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
