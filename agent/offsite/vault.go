package offsite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Vault keeps backups at a target.
type Vault struct {
	Target  Target
	URL     URL     // for messages
	Backoff Backoff // of a download that was cut

	// Idle is how long nothing may move before the target is taken for one that
	// has stalled: it was not reached (CodeUnreachable). 15 minutes, in which a
	// slow line moves a piece of any size that targets send at once.
	Idle time.Duration
}

const standardIdle = 15 * time.Minute

func (v Vault) idle() time.Duration { return cmp.Or(v.Idle, standardIdle) }

// watch calls the target with a context that ends once moved was not called
// for as long as Idle. A target may be silent without an error for ever.
func (v Vault) watch(ctx context.Context, call func(ctx context.Context, moved func()) error) error {
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.AfterFunc(v.idle(), cancel)
	defer timer.Stop()
	err := call(watched, func() { timer.Reset(v.idle()) })
	if err != nil && watched.Err() != nil && ctx.Err() == nil {
		return v.stalled(err)
	}
	return err
}

func (v Vault) stalled(err error) error {
	return Fault(CodeUnreachable, err, fmt.Sprintf("Nothing has moved at %s for %s", v.URL, v.idle()), "Check the target and the network to it; it is tried again.")
}

// moving calls moved for each read that got something.
type moving struct {
	io.Reader

	moved func()
}

// Read implements io.Reader.
func (m moving) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	if n > 0 {
		m.moved()
	}
	return n, err
}

func (v Vault) list(ctx context.Context, prefix string) (objects []Object, err error) {
	err = v.watch(ctx, func(ctx context.Context, _ func()) error {
		objects, err = v.Target.List(ctx, prefix)
		return err
	})
	return objects, err
}

// Copies lists the backups of an instance, or of all where it is empty, newest
// first. What else lies at the target is not seen.
func (v Vault) Copies(ctx context.Context, instance string) ([]Copy, error) {
	prefix := ""
	if instance != "" {
		if !validName(instance) {
			return nil, problem.New(problem.Usage, fmt.Sprintf("%q is no ID of an instance.", instance), "See which there are: agnes backup list --target "+v.URL.String())
		}
		prefix = instance + "/"
	}
	objects, err := v.list(ctx, prefix)
	if err != nil {
		return nil, err
	}
	copies := []Copy{}
	for _, o := range objects {
		if c, ok := parseCopy(o); ok && (instance == "" || c.Instance == instance) {
			copies = append(copies, c)
		}
	}
	slices.SortFunc(copies, func(a, b Copy) int {
		return cmp.Or(b.Made().Compare(a.Made()), cmp.Compare(b.ID, a.ID), cmp.Compare(a.Instance, b.Instance))
	})
	return copies, nil
}

// Find returns one copy by its ID, or the newest for "" and "latest": of those
// that say they were made later than now only where there is no other. Where
// several instances keep backups at the target and none is named, it is a
// problem.Conflict that lists them.
func (v Vault) Find(ctx context.Context, instance, id string) (Copy, error) {
	copies, err := v.Copies(ctx, instance)
	if err != nil {
		return Copy{}, err
	}
	next := "See what is there: agnes backup list --target " + v.URL.String()
	if id != "" && id != "latest" {
		copies = slices.DeleteFunc(copies, func(c Copy) bool { return c.ID != id })
	}
	if len(copies) == 0 {
		what := "backup"
		if id != "" && id != "latest" {
			what += " " + id
		}
		if instance != "" {
			what += " of the instance " + instance
		}
		return Copy{}, Fault(CodeNoObject, nil, fmt.Sprintf("There is no %s at %s.", what, v.URL), next)
	}
	if owners := Instances(copies); len(owners) > 1 {
		return Copy{}, problem.New(problem.Conflict, fmt.Sprintf("%d instances keep backups at %s; the newest are %s.", len(owners), v.URL, newest(copies, owners)),
			"Say which one: --instance "+owners[0]).WithCode("backup_several_instances")
	}
	now := time.Now()
	at := slices.IndexFunc(copies, func(c Copy) bool { return !ahead(c.Made(), now) })
	return copies[max(at, 0)], nil
}

// Instances returns the IDs of the instances that have copies, the one with
// the newest first.
func Instances(copies []Copy) []string {
	var ids []string
	for _, c := range copies {
		if !slices.Contains(ids, c.Instance) {
			ids = append(ids, c.Instance)
		}
	}
	return ids
}

func newest(copies []Copy, owners []string) string {
	text := ""
	for _, owner := range owners {
		at := slices.IndexFunc(copies, func(c Copy) bool { return c.Instance == owner })
		if text != "" {
			text += ", "
		}
		text += fmt.Sprintf("%s (%s)", owner, copies[at].ID)
	}
	return text
}

// Upload seals the file of a backup and puts it to the target. A copy that is
// there already is left as it is: names are unique and appear whole. That it is
// there, and as large as this one, is seen by a look.
func (v Vault) Upload(ctx context.Context, to *Recipients, c Copy, path string) (Copy, error) {
	if to == nil || to.Count() == 0 {
		_, err := ParseRecipients("")
		return Copy{}, err
	}
	if !validName(c.Instance) || !validName(c.ID) {
		return Copy{}, problem.New(problem.Internal, fmt.Sprintf("%q is no name for an object.", c.Name()), "Report this.")
	}
	f, err := os.Open(path)
	if err != nil {
		return Copy{}, err
	}
	defer func() { _ = f.Close() }() // it was only read
	fi, err := f.Stat()
	if err != nil {
		return Copy{}, err
	}
	sealed, size, err := to.Seal(f, fi.Size())
	if err != nil {
		return Copy{}, err
	}
	c.Size = size
	err = v.watch(ctx, func(ctx context.Context, moved func()) error {
		return v.Target.Put(ctx, c.Name(), size, moving{sealed, moved})
	})
	if HasCode(err, CodeExists) {
		err = v.confirm(ctx, c)
	}
	if err != nil {
		return Copy{}, err
	}
	return c, nil
}

// confirm makes sure that a copy is at the target.
func (v Vault) confirm(ctx context.Context, c Copy) error {
	objects, err := v.list(ctx, c.Name())
	if err != nil {
		return err
	}
	at := slices.IndexFunc(objects, func(o Object) bool { return o.Name == c.Name() })
	switch {
	case at < 0:
		return Fault(CodeUnreachable, nil, fmt.Sprintf("%s says that it has %s, and does not list it.", v.URL, c.Name()), "It is tried again; see what is there: agnes backup list --target "+v.URL.String())
	case objects[at].Size != c.Size:
		return Fault(CodeDamaged, nil, fmt.Sprintf("Expected %s of %d bytes at %s, found one of %d.", c.Name(), c.Size, v.URL, objects[at].Size),
			"Where AGNES_BACKUP_RECIPIENTS was changed meanwhile, that is why; else prove it: agnes backup verify "+c.ID+" --from "+v.URL.String()+" --identity FILE")
	}
	return nil
}

// Fetch writes the backup of a copy, opened, to w. A connection that is cut, or
// on which nothing moves, is taken up where it ended. What was written is whole and as it was sealed only
// where no error comes back.
func (v Vault) Fetch(ctx context.Context, with *Identities, c Copy, w io.Writer) error {
	sealed := &resumed{ctx: ctx, vault: v, copy: c}
	defer sealed.close()
	plain, err := with.Open(sealed)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, plain)
	return err
}

// Raw writes a copy as it is, sealed, to w.
func (v Vault) Raw(ctx context.Context, c Copy, w io.Writer) error {
	sealed := &resumed{ctx: ctx, vault: v, copy: c}
	defer sealed.close()
	_, err := io.Copy(w, sealed)
	return err
}

// resumed reads an object to its end over as many connections as it takes.
type resumed struct {
	ctx    context.Context //nolint:containedctx // of the one call that reads it
	vault  Vault
	copy   Copy
	offset int64
	body   io.ReadCloser
	end    context.CancelFunc // of what body reads from
}

func (r *resumed) close() {
	if r.body != nil {
		_ = r.body.Close()
		r.end()
		r.body = nil
	}
}

// open connects anew.
func (r *resumed) open() error {
	r.close()
	ctx, end := context.WithCancel(r.ctx)
	timer := time.AfterFunc(r.vault.idle(), end)
	body, err := r.vault.Target.Get(ctx, r.copy.Name(), r.offset)
	timer.Stop()
	if err != nil {
		if ctx.Err() != nil && r.ctx.Err() == nil {
			err = r.vault.stalled(err)
		}
		end()
		return err
	}
	r.body, r.end = body, end
	return nil
}

// read waits for bytes as long as Idle.
func (r *resumed) read(p []byte) (int, error) {
	timer := time.AfterFunc(r.vault.idle(), r.end)
	defer timer.Stop()
	return r.body.Read(p)
}

// Read implements io.Reader.
func (r *resumed) Read(p []byte) (n int, err error) {
	if r.offset == r.copy.Size {
		return 0, io.EOF
	}
	if r.body != nil {
		if n, _ := r.read(p); n > 0 { // what ended it is met again below
			r.offset += int64(n)
			return n, nil
		}
	}
	err = r.vault.Backoff.Retry(r.ctx, func() error {
		if err := r.open(); err != nil {
			return err
		}
		var err error
		n, err = r.read(p)
		if n > 0 {
			return nil
		}
		if ctx := r.ctx.Err(); ctx != nil {
			return ctx
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Fault(CodeUnreachable, err, fmt.Sprintf("The download from %s ended at byte %d of %d", r.vault.URL, r.offset, r.copy.Size),
			"Check the network to the target, then give the same command again.")
	})
	r.offset += int64(n)
	return n, err
}

// Prune deletes the copies of one instance that keep lets go, oldest first,
// and returns those that it deleted. The newest stays whatever keep says, and
// so does everything that has no name of ours.
func (v Vault) Prune(ctx context.Context, instance string, keep Keep) ([]Copy, error) {
	if !validName(instance) {
		return nil, problem.New(problem.Internal, fmt.Sprintf("Expected the ID of an instance, found %q.", instance), "Report this.")
	}
	copies, err := v.Copies(ctx, instance)
	if err != nil {
		return nil, err
	}
	var dated []Dated
	for _, c := range copies {
		dated = append(dated, Dated{c.ID, c.Made()})
	}
	stays := keep.Stays(dated, time.Now())
	var gone []Copy
	for _, c := range slices.Backward(copies) {
		if stays[c.ID] {
			continue
		}
		if err := v.watch(ctx, func(ctx context.Context, _ func()) error { return v.Target.Delete(ctx, c.Name()) }); err != nil {
			return gone, err
		}
		gone = append(gone, c)
	}
	return gone, nil
}
