package alert

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// telegram is a bot. Whether a call worked stands in the body's ok; a 429 has the
// time to wait in parameters.retry_after (core.telegram.org/bots/api#making-requests).
type telegram struct {
	a fleet.Alert
	o Options
}

const (
	telegramAPI  = "https://api.telegram.org"
	telegramText = 4096 // characters; some bytes less than that is never more
)

// Send implements Sink.
func (t telegram) Send(ctx context.Context, m Message) (string, error) {
	token, err := secretOf(t.a.Secret)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]any{
		"chat_id": t.a.Chat, "text": clip(m.Text(), telegramText), // no parse_mode: nothing has to be escaped
		"link_preview_options": map[string]any{"is_disabled": true},
	})
	if err != nil {
		return "", fmt.Errorf("encode the message: %w", err)
	}
	address := redact.Secret(strings.TrimSuffix(cmp.Or(t.a.API, telegramAPI), "/") + "/bot" + token.Reveal() + "/sendMessage")
	got, err := t.o.post(ctx, address, bytes.NewReader(body), http.Header{"Content-Type": {"application/json"}})
	if err != nil {
		return "", err
	}
	var said struct {
		OK          bool   `json:"ok"`
		Code        int    `json:"error_code"`
		Description string `json:"description"`
		Parameters  struct {
			RetryAfter int   `json:"retry_after"`
			MigratedTo int64 `json:"migrate_to_chat_id"`
		} `json:"parameters"`
	}
	if json.Unmarshal([]byte(got.text), &said) != nil {
		return "", got.failed()
	}
	if said.OK {
		return "", nil
	}
	got.status, got.text = cmp.Or(said.Code, got.status), said.Description
	e := got.failed()
	e.After = cmp.Or(time.Duration(said.Parameters.RetryAfter)*time.Second, e.After)
	if said.Parameters.MigratedTo != 0 {
		e.Why += fmt.Sprintf("; write chat: '%d' into the inventory", said.Parameters.MigratedTo)
		e.Final = false
	}
	if strings.Contains(said.Description, "chat not found") {
		e.Final = false // the inventory's mistake, not the message's
	}
	return "", e
}
