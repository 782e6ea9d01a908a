package deploy

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Shell runs commands on one host over one connection. Its commands are POSIX
// and docker's; files are read and written through it, too.
type Shell interface {
	// Run runs one command to its end. A command that ends with another code than
	// 0 is an answer, not an error; so is one that could not begin, with a shell's
	// codes: 127 where the program is not there, 126 where it cannot be executed
	// or Dir cannot be entered. An error means that nothing is known of what the
	// command did: the connection broke, its Stdin could not be read, or ctx
	// ended, which ends the command and what it started: TERM, 2 s later KILL.
	Run(ctx context.Context, c Command) (Output, error)
	// Dial connects as a program on the host would, to reach a port that is
	// published on the host's loopback alone. Where the host allows no connection
	// of this kind at all, the error has the code NoForwarding.
	Dial(ctx context.Context, network, address string) (net.Conn, error)
	// Close ends the connection. It is idempotent.
	Close() error
	// String names the host for people: "this machine", ssh://agnes@203.0.113.7.
	String() string
}

// NoForwarding is the code of the error of a Shell whose host carries commands
// out and forbids connections to its ports.
const NoForwarding = "forwarding_forbidden"

// Command is a program with its arguments. No shell reads them: an adapter that
// needs one quotes them. Others on the host can see Args and, over SSH, Env in
// its list of processes: a secret goes through Stdin.
type Command struct {
	Args  []string  // the program, found by PATH, and its arguments
	Dir   string    // where it runs, from the login directory, which it is when empty
	Env   []string  // NAME=value, added to the host's own
	Stdin io.Reader // nothing when nil
}

// Output is what a command left.
type Output struct {
	Stdout, Stderr []byte
	Code           int // exit code; 128+n where a signal n ended it
}

// commandFailed is the code of the error of a command that ran and ended badly.
// Where nothing is known of a command, its error has another.
const commandFailed = "command_failed"

// Failed returns the error of a command that ended with another code than 0,
// with the last lines of what it said.
func (o Output) Failed(c Command) error {
	if o.Code == 0 {
		return nil
	}
	said := strings.TrimSpace(string(o.Stderr))
	if said == "" {
		said = strings.TrimSpace(string(o.Stdout))
	}
	const most = 2 << 10
	if len(said) > most {
		said = "…" + said[len(said)-most:]
	}
	return problem.New(problem.Unavailable, fmt.Sprintf("%s ended with code %d: %s", strings.Join(c.Args, " "), o.Code, said), "").WithCode(commandFailed)
}
