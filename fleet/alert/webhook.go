package alert

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// Headers of the signed webhook.
const (
	HeaderDelivery  = "Agnes-Delivery"  // the message's ID, the same at each attempt
	HeaderTimestamp = "Agnes-Timestamp" // seconds since 1970 of this attempt
	HeaderSignature = "Agnes-Signature" // v1= and the HMAC-SHA256, in hexadecimal, of TIMESTAMP.BODY
)

// ReplayWindow is how old a timestamp may be for a receiver to believe it.
const ReplayWindow = 5 * time.Minute

// Payload is the body of the signed webhook.
type Payload struct {
	ID    string `json:"id"`
	Title string `json:"title"`
	Text  string `json:"text"`
	Test  bool   `json:"test"`
	Items []Item `json:"items"`
}

// webhook is an address of a program's.
type webhook struct {
	a fleet.Alert
	o Options
}

// Send implements Sink.
func (w webhook) Send(ctx context.Context, m Message) (string, error) {
	address, err := secretOf(w.a.URL)
	if err != nil {
		return "", err
	}
	key, err := secretOf(w.a.Secret)
	if err != nil {
		return "", err
	}
	items := m.Items
	if items == nil {
		items = []Item{}
	}
	body, err := json.Marshal(Payload{ID: m.ID, Title: m.Title(), Text: m.Text(), Test: m.Test, Items: items})
	if err != nil {
		return "", fmt.Errorf("encode the message: %w", err)
	}
	stamp := strconv.FormatInt(w.o.Now().Unix(), 10)
	header := http.Header{}
	header.Set("Content-Type", "application/json")
	header.Set(HeaderDelivery, m.ID)
	header.Set(HeaderTimestamp, stamp)
	header.Set(HeaderSignature, "v1="+sign([]byte(key.Reveal()), stamp, body))
	got, err := w.o.post(ctx, address, bytes.NewReader(body), header)
	if err != nil {
		return "", err
	}
	if got.status < 200 || got.status > 299 {
		return "", got.failed()
	}
	return "", nil
}

func sign(key []byte, stamp string, body []byte) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(stamp + "."))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

// Verify is what a receiver does: it reports whether a request is of someone who
// has the key, and young enough that it is no copy. What it does not know is
// whether the ID came before.
func Verify(key []byte, h http.Header, body []byte, now time.Time) bool {
	stamp := h.Get(HeaderTimestamp)
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || now.Sub(time.Unix(seconds, 0)).Abs() > ReplayWindow {
		return false
	}
	return hmac.Equal([]byte(h.Get(HeaderSignature)), []byte("v1="+sign(key, stamp, body)))
}
