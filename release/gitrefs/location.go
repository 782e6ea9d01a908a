package gitrefs

import (
	"context"
	"fmt"
	"net"
	nethttp "net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/plumbing/transport/file"
	gitproto "github.com/go-git/go-git/v5/plumbing/transport/git"
	"github.com/go-git/go-git/v5/plumbing/transport/http"
	"github.com/go-git/go-git/v5/plumbing/transport/ssh"
	cryptossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// location is where a repository is and how to log in there.
type location struct {
	endpoint *transport.Endpoint // without credentials, other than ssh's user name
	shown    string              // for people
	user     string
	password redact.Secret
}

const scheme = `a path, file://, https://, ssh://, user@host:path or git://`

func parseLocation(text string, token redact.Secret) (location, error) {
	if text == "" {
		return location{}, problem.New(problem.Usage, "expected a git repository, found nothing", `release-bot version list --git "$(git remote get-url origin)"`)
	}
	ep, err := transport.NewEndpoint(text)
	if err != nil || strings.ContainsAny(text, "\x00\n") {
		// The cause would quote the text with its password.
		return location{}, problem.New(problem.Usage, "expected a git repository as "+scheme+", found text that is none of them", `release-bot version list --git "$(git remote get-url origin)"`)
	}
	l := location{endpoint: ep, user: ep.User, password: redact.Secret(ep.Password)}
	switch ep.Protocol {
	case "file":
		l.shown = ep.Path
	case "git":
		l.shown = ep.String()
	case "ssh":
		if ep.Password != "" {
			return location{}, problem.New(problem.Usage, "expected an ssh location without a password: ssh logs in with a key of the ssh-agent",
				fmt.Sprintf("ssh-add, then repeat with ssh://%s@%s/…", ep.User, ep.Host))
		}
		if ep.User == "" {
			ep.User, l.user = ssh.DefaultUsername, ssh.DefaultUsername
		}
		l.shown = ep.String()
	case "http", "https":
		ep.User, ep.Password = "", ""
		l.shown = ep.String()
		switch {
		case l.password != "" || l.user != "":
		case token != "" && trusted(ep):
			l.user, l.password = "x-access-token", token
		}
		if l.user != "" && !trusted(ep) {
			return location{}, problem.New(problem.Usage, "expected https for a location with credentials, found http: everybody on the way could read them",
				"repeat with https://"+ep.Host+ep.Path)
		}
	default:
		return location{}, problem.New(problem.Usage, fmt.Sprintf("expected %s, found %s://", scheme, ep.Protocol), `release-bot version list --git "$(git remote get-url origin)"`)
	}
	return l, nil
}

// trusted reports whether nobody on the way can read what is sent.
func trusted(ep *transport.Endpoint) bool {
	if ep.Protocol == "https" || ep.Host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(ep.Host, "[]"))
	return err == nil && addr.IsLoopback()
}

// secrets are the texts that no error may show.
func (l location) secrets() []string {
	if l.endpoint.Protocol == "ssh" {
		return nil
	}
	var all []string
	for _, s := range []string{l.password.Reveal(), l.user} {
		if s == "" || (s == l.user && l.password != "") {
			continue // beside a password, the user's name is none
		}
		all = append(all, s, url.PathEscape(s), url.QueryEscape(s))
	}
	return all
}

// connectBy picks the transport and the way to log in.
func (r *Refs) connectBy(o Options) {
	switch r.at.endpoint.Protocol {
	case "file":
		r.client = file.DefaultClient
	case "git":
		r.client = gitproto.DefaultClient
	case "ssh":
		r.client = ssh.DefaultClient
		r.auth = &agentAuth{socket: o.AgentSocket, knownHosts: o.KnownHosts, endpoint: r.at.endpoint, timeout: r.timeout}
	default:
		r.client = http.NewClient(&nethttp.Client{Transport: nethttp.DefaultTransport})
		if r.at.user != "" {
			r.auth = &http.BasicAuth{Username: r.at.user, Password: r.at.password.Reveal()}
		}
	}
}

// agentAuth logs in with the keys of an ssh-agent, at hosts that are known.
type agentAuth struct {
	socket     string
	knownHosts []string
	endpoint   *transport.Endpoint
	timeout    time.Duration
}

// Name and String make it a transport.AuthMethod.
func (a *agentAuth) Name() string { return ssh.PublicKeysCallbackName }

// String shows the user.
func (a *agentAuth) String() string { return a.endpoint.User + " by ssh-agent" }

// ClientConfig is called for each connection.
func (a *agentAuth) ClientConfig() (*cryptossh.ClientConfig, error) {
	if a.socket == "" {
		return nil, problem.New(problem.Unauthenticated, "expected an ssh-agent with a key for "+a.endpoint.Host+", found SSH_AUTH_SOCK empty",
			`eval "$(ssh-agent)" && ssh-add`)
	}
	known, err := ssh.NewKnownHostsDb(a.files()...)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unauthenticated, "expected a known_hosts file that names "+a.endpoint.Host,
			a.hostHint())
	}
	address := net.JoinHostPort(a.endpoint.Host, fmt.Sprint(max(a.endpoint.Port, 0)))
	if a.endpoint.Port <= 0 {
		address = net.JoinHostPort(a.endpoint.Host, "22")
	}
	return &cryptossh.ClientConfig{
		User:              a.endpoint.User,
		Auth:              []cryptossh.AuthMethod{cryptossh.PublicKeysCallback(a.signers)},
		HostKeyCallback:   known.HostKeyCallback(),
		HostKeyAlgorithms: known.HostKeyAlgorithms(address),
		Timeout:           a.timeout,
	}, nil
}

func (a *agentAuth) files() []string {
	if len(a.knownHosts) > 0 {
		return a.knownHosts
	}
	files := []string{"/etc/ssh/ssh_known_hosts"}
	if home, err := os.UserHomeDir(); err == nil {
		files = append(files, home+"/.ssh/known_hosts")
	}
	return files
}

func (a *agentAuth) hostHint() string {
	port := ""
	if a.endpoint.Port > 0 {
		port = fmt.Sprintf("-p %d ", a.endpoint.Port)
	}
	return fmt.Sprintf("compare the fingerprints that this shows with those that the host publishes, then append its lines to ~/.ssh/known_hosts: ssh-keyscan %s%s | ssh-keygen -lf -",
		port, a.endpoint.Host)
}

// signers asks the agent anew each time; the connection lives as long as the
// handshake needs it, which is the process's own short life.
func (a *agentAuth) signers() ([]cryptossh.Signer, error) {
	conn, err := (&net.Dialer{Timeout: a.timeout}).DialContext(context.Background(), "unix", a.socket)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unauthenticated, "expected an ssh-agent at "+a.socket, `eval "$(ssh-agent)" && ssh-add`)
	}
	return agent.NewClient(conn).Signers()
}
