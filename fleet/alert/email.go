package alert

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/smtp"
	"net/textproto"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet"
)

// email is a mail server. A message's ID is its Message-ID, by which most servers
// and readers know a second copy.
type email struct {
	a fleet.Alert
	o Options
}

// mailLimit bounds one conversation.
const mailLimit = time.Minute

// Send implements Sink.
func (e email) Send(ctx context.Context, m Message) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, mailLimit)
	defer cancel()
	host, _, err := net.SplitHostPort(e.a.Server)
	if err != nil {
		return "", &Error{Why: "the mail server's address cannot be used"}
	}
	raw, err := e.o.Dial(ctx, "tcp", e.a.Server)
	if err != nil {
		return "", &Error{Why: "no connection to the mail server: " + err.Error()}
	}
	defer func() { _ = raw.Close() }()
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })() // net/smtp knows no context
	conn := raw
	if e.a.Security == "tls" {
		conn = tls.Client(raw, &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, RootCAs: e.o.Roots})
	}
	if err := e.converse(conn, host, m); err != nil {
		return "", mailError(err)
	}
	return "", nil
}

func (e email) converse(conn net.Conn, host string, m Message) error {
	c, err := smtp.NewClient(conn, host)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.Hello("localhost"); err != nil {
		return err
	}
	if e.a.Security == "starttls" {
		if ok, _ := c.Extension("STARTTLS"); !ok {
			return &Error{Why: "expected the mail server to offer STARTTLS, found that it does not: nothing was sent in the clear"}
		}
		if err := c.StartTLS(&tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, RootCAs: e.o.Roots}); err != nil {
			return err
		}
	}
	if e.a.User != "" {
		password, err := secretOf(e.a.Secret)
		if err != nil {
			return err
		}
		if err := c.Auth(smtp.PlainAuth("", e.a.User, password.Reveal(), host)); err != nil {
			return err
		}
	}
	if err := c.Mail(e.a.From); err != nil {
		return err
	}
	// One who is gone does not keep it from the others.
	var refused error
	accepted := 0
	for _, to := range e.a.To {
		err := c.Rcpt(to)
		if said, ok := errors.AsType[*textproto.Error](err); ok {
			refused = errors.Join(refused, fmt.Errorf("%s: %w", to, said))
			continue
		}
		if err != nil {
			return err
		}
		accepted++
	}
	if accepted == 0 || m.Test && refused != nil {
		return refused
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write(e.text(m)); err != nil {
		return err
	}
	if err := w.Close(); err != nil { // its answer says that the server has taken it
		return err
	}
	_ = c.Quit() // it has arrived, whatever is said now
	return nil
}

// text is the message as RFC 5322 has it.
func (e email) text(m Message) []byte {
	_, domain, _ := strings.Cut(e.a.From, "@")
	var b bytes.Buffer
	header := func(name, value string) { b.WriteString(name + ": " + value + "\r\n") }
	header("From", e.a.From)
	header("To", strings.Join(e.a.To, ", "))
	header("Subject", mime.QEncoding.Encode("utf-8", clip("[fleet] "+oneLine(m.Title()), 200)))
	header("Date", e.o.Now().Format(time.RFC1123Z))
	header("Message-ID", "<"+m.ID+"@"+domain+">")
	header("Auto-Submitted", "auto-generated") // no out-of-office answers (RFC 3834)
	header("MIME-Version", "1.0")
	header("Content-Type", "text/plain; charset=utf-8")
	header("Content-Transfer-Encoding", "base64")
	b.WriteString("\r\n")
	encoded := base64.StdEncoding.EncodeToString([]byte(m.Text() + "\n"))
	for len(encoded) > 76 {
		b.WriteString(encoded[:76] + "\r\n")
		encoded = encoded[76:]
	}
	b.WriteString(encoded + "\r\n")
	return b.Bytes()
}

// mailError: 4xx asks to come again, and 5xx says no (RFC 5321, 4.2.1). What a
// server says no to before the text is the channel's set-up, which people mend.
func mailError(err error) error {
	if own, ok := errors.AsType[*Error](err); ok {
		return own
	}
	e := &Error{Why: "the mail server: " + err.Error()}
	if said, ok := errors.AsType[*textproto.Error](err); ok {
		e.Why = "the mail server said: " + clip(oneLine(err.Error()), 400)
		e.Final = said.Code == 552 || said.Code == 554
	}
	return e
}
