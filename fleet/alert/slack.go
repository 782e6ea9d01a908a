package alert

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// slack is an incoming webhook of Slack, or of what understands the same: a JSON
// object with text. It answers 200 and "ok"; else a status and a bare word, such as
// invalid_payload (400), no_service (404), or 429 with Retry-After
// (api.slack.com/messaging/webhooks).
type slack struct {
	a fleet.Alert
	o Options
}

// slackText is the most that Slack takes in one text without cutting it.
const slackText = 4000

// Send implements Sink.
func (s slack) Send(ctx context.Context, m Message) (string, error) {
	address, err := secretOf(s.a.URL)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]any{"text": s.text(m), "unfurl_links": false})
	if err != nil {
		return "", fmt.Errorf("encode the message: %w", err)
	}
	got, err := s.o.post(ctx, address, bytes.NewReader(body), http.Header{"Content-Type": {"application/json"}})
	if err != nil {
		return "", err
	}
	if got.status != http.StatusOK {
		return "", got.failed()
	}
	return "", nil
}

func (s slack) text(m Message) string {
	// Slack's own mark-up needs the first three. Mattermost and others that take the
	// same call people by their name, and know links and pictures, without them.
	escape := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "@", "@\u200b", "](", "]\u200b(").Replace
	lines := m.lines(func(i Item) string {
		mark := ":red_circle: "
		if i.Event == Closed {
			mark = ":large_green_circle: "
		}
		text := mark + escape(clip(i.line(), 600))
		if i.Link != "" {
			text += " <" + escape(i.Link) + "|Show>"
		}
		return text
	})
	if len(lines) > 1 || m.Test {
		lines = append([]string{"*" + escape(m.Title()) + "*"}, lines...)
	}
	// Whole lines, so that no mark is cut in its middle.
	text := strings.Join(lines, "\n")
	for size := min(len(lines)-1, shown); len(text) > slackText && size > 0; size-- {
		text = strings.Join(append(slices.Clone(lines[:size]), more(len(m.Items)-size+1)), "\n")
	}
	return clip(text, slackText)
}
