package ssh

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	cryptossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// pin is a key that the host may have, and where that is written.
type pin struct {
	key   cryptossh.PublicKey
	where string
}

// pins are what is known of a host's keys.
type pins struct {
	target deploy.Target
	where  string // for messages: where a key is expected to be
	known  []pin
	file   cryptossh.HostKeyCallback // nil: known is all
}

// readPins reads the keys of one host. None is an answer: the refusal, which
// names the key that was found, comes with the connection.
func readPins(t deploy.Target, o Options) (*pins, error) {
	p := &pins{target: t, where: cmp.Or(o.KnownHosts, "the pinned host keys")}
	if len(o.HostKeys) > 0 {
		p.where = "the pinned host keys"
		for _, text := range o.HostKeys {
			key, _, _, _, err := cryptossh.ParseAuthorizedKey([]byte(text))
			if err != nil {
				return nil, problem.Wrap(err, problem.Usage, fmt.Sprintf("expected a host key \"ssh-ed25519 AAAA…\" for %s, found %.40q", t.Address(), text),
					p.keyscan("")+" prints it after the name")
			}
			p.known = append(p.known, pin{key, p.where})
		}
		return p, nil
	}
	if o.KnownHosts == "" {
		return nil, problem.New(problem.Usage, "expected the key of "+t.Address()+" to be pinned, found neither a key nor a known_hosts file",
			p.keyscan("")+" >>known_hosts, and compare its fingerprint with what the host's console says: "+ownFingerprint)
	}
	var err error
	if p.file, err = knownhosts.New(o.KnownHosts); err != nil {
		return nil, problem.Wrap(err, problem.Usage, "expected a known_hosts file in "+o.KnownHosts, p.keyscan("")+" >>"+o.KnownHosts)
	}
	// A key that nobody has makes it list those of the host.
	stranger, err := cryptossh.NewPublicKey(ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)))
	if err != nil {
		return nil, err
	}
	if want, ok := errors.AsType[*knownhosts.KeyError](p.file(t.Address(), new(net.TCPAddr), stranger)); ok {
		for _, k := range want.Want {
			p.known = append(p.known, pin{k.Key, fmt.Sprintf("%s:%d", k.Filename, k.Line)})
		}
	}
	return p, nil
}

// algorithms limits what the host may offer to the types of the pinned keys. Of
// several keys a host would else show the one that it likes best, which need not
// be the pinned one.
func (p *pins) algorithms() []string {
	var all []string
	for _, k := range p.known {
		names := []string{k.key.Type()}
		if names[0] == cryptossh.KeyAlgoRSA { // one kind of key, several of signatures; not SHA-1
			names = []string{cryptossh.KeyAlgoRSASHA512, cryptossh.KeyAlgoRSASHA256}
		}
		for _, name := range names {
			if !slices.Contains(all, name) {
				all = append(all, name)
			}
		}
	}
	return all
}

// check refuses a key that is not pinned.
func (p *pins) check(remote net.Addr, key cryptossh.PublicKey) error {
	if p.file != nil {
		err := p.file(p.target.Address(), remote, key)
		if err == nil {
			return nil
		}
		if revoked, ok := errors.AsType[*knownhosts.RevokedError](err); ok {
			return problem.New(problem.Refused, fmt.Sprintf("the host key of %s, %s, is revoked by %s:%d", p.target.Address(), show(key), revoked.Revoked.Filename, revoked.Revoked.Line),
				"give the host another key: ssh-keygen -A after removing this one, and restart sshd there").WithCode("host_key_revoked")
		}
	}
	var expected []string
	for _, k := range p.known {
		if p.file == nil && k.key.Type() == key.Type() && string(k.key.Marshal()) == string(key.Marshal()) {
			return nil
		}
		expected = append(expected, show(k.key)+" ("+k.where+")")
	}
	if len(expected) == 0 {
		return problem.New(problem.Refused, fmt.Sprintf("expected the key of %s in %s, found none there; the host shows %s", p.target.Address(), p.where, show(key)),
			fmt.Sprintf("compare it with what the host's console says (%s), then: %s >>%s", ownFingerprint, p.keyscan(key.Type()), cmp.Or(strings.TrimPrefix(p.where, "the pinned host keys"), "known_hosts"))).
			WithCode("host_key_unknown")
	}
	return problem.New(problem.Refused, fmt.Sprintf("expected the host key %s of %s, found %s; it may be another machine", strings.Join(expected, " or "), p.target.Address(), show(key)),
		fmt.Sprintf("compare it with what the host's console says (%s); only where they agree, replace the pinned key by what this prints: %s", ownFingerprint, p.keyscan(key.Type()))).
		WithCode("host_key_mismatch")
}

// ownFingerprint is what a person runs on the host itself.
const ownFingerprint = "for f in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $f; done"

// keyscan is the command that prints a host's keys, of one type or of all.
func (p *pins) keyscan(keyType string) string {
	kinds := map[string]string{cryptossh.KeyAlgoED25519: "ed25519", cryptossh.KeyAlgoRSA: "rsa"}
	kind := kinds[keyType]
	if strings.HasPrefix(keyType, "ecdsa-") {
		kind = "ecdsa"
	}
	if kind != "" {
		kind = " -t " + kind
	}
	return fmt.Sprintf("ssh-keyscan -p %d%s %s", p.target.Port, kind, p.target.Host)
}

func show(key cryptossh.PublicKey) string { return key.Type() + " " + cryptossh.FingerprintSHA256(key) }
