package release

import (
	"context"
	"fmt"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// incident is something that people must hear of: by one issue, however often
// the verb is repeated, and by the webhook.
type incident struct {
	kind    string // rollback or inconclusive: its name in the marker and the event
	version Version
	title   string
	body    string // Markdown, without what a second run would say differently
	label   string
	notice  string // plain text for the webhook
}

// marker is the hidden text by which an incident's issue is found again.
func marker(kind string, v Version) string {
	return fmt.Sprintf("<!-- release-bot:%s:%s -->", kind, v)
}

// telling are the steps that tell people, the issue first: the webhook's message
// points at it. What is asked for once everything before is done; nil says that
// nobody has to hear of it. The issue's address is left in url.
func (p *Publisher) telling(what func() *incident, url *string) []step {
	return []step{
		{name: "issue", onward: true, run: func(ctx context.Context) (outcome, error) {
			if i := what(); i != nil {
				return p.openIssue(ctx, *i, url)
			}
			return outcome{}, nil
		}},
		{name: "notify", onward: true, run: func(ctx context.Context) (outcome, error) {
			if i := what(); i != nil {
				return p.notify(ctx, *i, *url)
			}
			return outcome{}, nil
		}},
	}
}

func (p *Publisher) openIssue(ctx context.Context, i incident, url *string) (outcome, error) {
	if p.Forge == nil {
		return skipped("no code host at hand: --repo OWNER/NAME would name one"), nil
	}
	if p.DryRun {
		return p.did("an issue says so"), nil
	}
	at, err := p.Forge.Alert(ctx, Alert{Marker: marker(i.kind, i.version), Title: i.title, Body: i.body, Labels: []string{i.label}})
	if err != nil {
		return outcome{}, err
	}
	*url = at
	return p.did("%s", at), nil
}

func (p *Publisher) notify(ctx context.Context, i incident, url string) (outcome, error) {
	if p.Notify == nil {
		return skipped("no webhook is given"), nil
	}
	if p.DryRun {
		return p.did("the webhook is called"), nil
	}
	text := i.notice
	if url != "" {
		text += " " + url
	}
	return p.did("the webhook was called"), p.Notify(ctx, Notice{Event: i.kind + "/" + i.version.String(), Text: text})
}

// settle closes the issue that an inconclusive verdict had opened, now that
// there is an answer. What the version had before says whether there may be one.
// An issue that stays open is no reason to fail: everything else is done.
func (p *Publisher) settle(ctx context.Context, v Version, before verdictEntry, answer Verdict) (outcome, error) {
	if !before.inconclusive || p.Forge == nil {
		return outcome{}, nil
	}
	if p.DryRun {
		return p.did("the issue about the inconclusive test is closed"), nil
	}
	url, err := p.Forge.Settle(ctx, marker(inconclusive, v), fmt.Sprintf("Settled: the verdict of %s is %s.", v, answer))
	switch {
	case ctx.Err() != nil:
		return outcome{}, err
	case err != nil:
		return skipped("close the issue about the inconclusive test by hand: %s", problem.As(err).Message), nil
	case url == "":
		return skipped("no issue about the inconclusive test is open"), nil
	}
	return p.did("closed %s", url), nil
}
