package ssh

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	cryptossh "golang.org/x/crypto/ssh"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/internal/sshtest"
)

// lingering is a connection whose end takes a while to be known.
type lingering struct{ net.Conn }

// Close serves net.Conn.
func (l lingering) Close() error {
	<-time.After(300 * time.Millisecond)
	return l.Conn.Close()
}

func TestNoCommandBeginsOnAConnectionThatIsAboutToBeOver(t *testing.T) {
	t.Parallel()
	sshd := sshtest.Start(t)
	target, err := deploy.ParseTarget("ssh://" + sshd.User + "@" + sshd.Addr)
	if err != nil {
		t.Fatal(err)
	}
	key, err := readIdentity(sshd.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	s := newShell(target, func(context.Context) (*link, error) {
		raw, err := net.Dial("tcp", sshd.Addr)
		if err != nil {
			return nil, err
		}
		config := &cryptossh.ClientConfig{User: sshd.User, Auth: []cryptossh.AuthMethod{cryptossh.PublicKeys(key)}, HostKeyCallback: cryptossh.InsecureIgnoreHostKey()}
		c, channels, requests, err := cryptossh.NewClientConn(lingering{raw}, sshd.Addr, config)
		if err != nil {
			return nil, errors.Join(err, raw.Close())
		}
		return newLink(cryptossh.NewClient(c, channels, requests), nil), nil
	})
	defer func() { _ = s.Close() }()
	started := filepath.Join(t.TempDir(), "started")
	cut := make(chan error, 1)
	go func() {
		_, err := s.Run(t.Context(), deploy.Command{Args: []string{"sh", "-c", `touch "$1"; sleep 20`, "sh", started}})
		cut <- err
	}()
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(5 * time.Millisecond) {
		if _, err := os.Stat(started); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the command has not begun after 20 s")
		}
	}
	sshd.Restart()
	if err := <-cut; err == nil {
		t.Error("nobody knows how the command ended, and there is no error")
	}
	if out, err := s.Run(t.Context(), deploy.Command{Args: []string{"echo", "again"}}); err != nil || string(out.Stdout) != "again\n" {
		t.Errorf("the next command: %q, %v", out.Stdout, err)
	}
}
