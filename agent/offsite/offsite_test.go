package offsite_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/folder"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite/offsitetest"
	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func keyPair(t *testing.T) (recipient string, identity *offsite.Identities) {
	t.Helper()
	recipient, file, err := offsite.NewIdentity(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return recipient, load(t, []byte(file.Reveal()))
}

func load(t *testing.T, data []byte) *offsite.Identities {
	t.Helper()
	path := filepath.Join(t.TempDir(), "identity")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	ids, err := offsite.LoadIdentities(path)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func recipients(t *testing.T, text string) *offsite.Recipients {
	t.Helper()
	r, err := offsite.ParseRecipients(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sshPair(t *testing.T) (recipient string, identity *offsite.Identities) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	return string(ssh.MarshalAuthorizedKey(pub)), load(t, pem.EncodeToMemory(block))
}

func TestEachRecipientOpensAndNobodyElse(t *testing.T) {
	t.Parallel()
	a, idA := keyPair(t)
	b, idB := sshPair(t)
	_, stranger := keyPair(t)
	to := recipients(t, "# two people\n"+a+",\n"+b)
	if to.Count() != 2 {
		t.Fatalf("%d recipients, want 2", to.Count())
	}
	for _, size := range []int{0, 1, 64<<10 - 1, 64 << 10, 64<<10 + 1, 300_000} {
		data := offsitetest.Bytes(size)
		r, want, err := to.Seal(bytes.NewReader(data), int64(size))
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := io.ReadAll(r)
		if err != nil || int64(len(sealed)) != want {
			t.Fatalf("%d bytes are sealed in %d, %v; said %d", size, len(sealed), err, want)
		}
		if size > 32 && bytes.Contains(sealed, data[:32]) {
			t.Fatal("the content is in the sealed bytes")
		}
		for _, id := range []*offsite.Identities{idA, idB} {
			plain, err := id.Open(bytes.NewReader(sealed))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(plain); err != nil || !bytes.Equal(got, data) {
				t.Errorf("opened %d of %d bytes, %v", len(got), size, err)
			}
		}
		if _, err := stranger.Open(bytes.NewReader(sealed)); !problem.Is(err, problem.Forbidden) || problem.As(err).Hint == "" {
			t.Errorf("a stranger: %v", err)
		}
		for what, bad := range map[string][]byte{"cut": sealed[:len(sealed)-1], "changed": changed(sealed)} {
			plain, err := idA.Open(bytes.NewReader(bad))
			if err == nil {
				_, err = io.ReadAll(plain)
			}
			if !offsite.HasCode(err, offsite.CodeDamaged) {
				t.Errorf("%s at %d bytes: %v", what, size, err)
			}
		}
	}
}

func changed(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

func TestWithoutRecipientsNothingLeaves(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", " , ", "# none", "age1nonsense", "AGE-SECRET-KEY-1QQQQ", "ssh-rsa AAAA", "/does/not/exist"} {
		if _, err := offsite.ParseRecipients(text); !problem.Is(err, problem.Usage) || problem.As(err).Hint == "" || strings.Contains(err.Error(), "QQQQ") {
			t.Errorf("%q: %v", text, err)
		}
	}
	v, dir := vault(t)
	if _, err := v.Upload(t.Context(), nil, offsite.Copy{Instance: "i", ID: "1"}, backupFile(t, 10)); !problem.Is(err, problem.Usage) {
		t.Errorf("upload: %v", err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) > 0 {
		t.Errorf("at the target: %v", files)
	}
}

func TestRecipientsCanStandInAFile(t *testing.T) {
	t.Parallel()
	a, _ := keyPair(t)
	b, _ := keyPair(t)
	path := filepath.Join(t.TempDir(), "recipients")
	if err := os.WriteFile(path, []byte("# people\n"+a+"\n\n"+b+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := recipients(t, path).Count(); n != 2 {
		t.Errorf("%d recipients, want 2", n)
	}
}

func TestIdentitiesThatCannotServeAreNamed(t *testing.T) {
	t.Parallel()
	for what, content := range map[string]string{"nothing": "", "nonsense": "AGE-SECRET-KEY-1SECRET", "an encrypted one": "age-encryption.org/v1\n"} {
		path := filepath.Join(t.TempDir(), "identity")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := offsite.LoadIdentities(path); !problem.Is(err, problem.Usage) || problem.As(err).Hint == "" || strings.Contains(err.Error(), "1SECRET") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestURLs(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]offsite.URL{
		"s3://bucket/a/b/?endpoint=https://minio:9000&region=x": {Scheme: "s3", Host: "bucket", Path: "a/b"},
		"s3://bucket":                       {Scheme: "s3", Host: "bucket"},
		"gs://bucket/a":                     {Scheme: "gs", Host: "bucket", Path: "a"},
		"sftp://me@host:2222/srv/backups":   {Scheme: "sftp", User: "me", Host: "host:2222", Path: "/srv/backups"},
		"file:///mnt/backup/?same_disk=yes": {Scheme: "file", Path: "/mnt/backup"},
	} {
		got, err := offsite.ParseURL(text)
		if err != nil || got.Scheme != want.Scheme || got.User != want.User || got.Host != want.Host || got.Path != want.Path {
			t.Errorf("%s = %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "/mnt/backup", "bucket", "ftp://host/x", "s3:///x", "s3://key@bucket", "s3://bucket?secret=hunter2", "gs://bucket?region=x",
		"sftp://host/x", "sftp://me@host", "sftp://me@host/", "sftp://me:hunter2@host/x", "s3://key:hunter2@bucket/x", "file://mnt/backup", "file:///", "file:x", "s3://b/x#y", "s3://b%zz",
	} {
		if _, err := offsite.ParseURL(text); !problem.Is(err, problem.Usage) || problem.As(err).Hint == "" || strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"s3://bucket/a?endpoint=https://x", "sftp://u@h:1/p", "file:///x", "gs://b/../../c", "s3://u:p@b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := offsite.ParseURL(text)
		if err != nil {
			return
		}
		if strings.Contains(u.Path, "..") && strings.Contains("/"+u.Path+"/", "/../") {
			t.Errorf("%q leaves its path: %q", text, u.Path)
		}
		if again, err := offsite.ParseURL(u.String()); err != nil || again.Path != u.Path || again.Host != u.Host {
			t.Errorf("%q becomes %q, which is %+v, %v", text, u, again, err)
		}
	})
}

func TestKeep(t *testing.T) {
	t.Parallel()
	day := func(n int) offsite.Dated {
		return offsite.Dated{ID: fmt.Sprint(n), Made: time.Date(2026, 4, 30, 2, 0, 0, 0, time.UTC).AddDate(0, 0, -n)}
	}
	list := []offsite.Dated{day(0), day(1), day(2), day(10), day(40)}
	for text, want := range map[string]int{"1": 1, "2": 2, "30": 5, "1d": 2, "10d": 4, "365d": 5} {
		k, err := offsite.ParseKeep(text)
		if err != nil {
			t.Fatal(err)
		}
		stays := k.Stays(list, list[0].Made)
		if len(stays) != want || !stays["0"] {
			t.Errorf("%s keeps %v, want %d with the newest", text, stays, want)
		}
	}
	if stays := (offsite.Keep{}).Stays(list, list[0].Made); len(stays) != 1 || !stays["0"] {
		t.Errorf("nothing asked for keeps %v, want the newest", stays)
	}
	// A clock that was ahead dates backups into the future. They stay, and make none old.
	now, future := day(0).Made, []offsite.Dated{day(-3653), day(-3652)}
	for text, want := range map[string]int{"1": 3, "2": 4, "1d": 4, "10d": 6} {
		k, _ := offsite.ParseKeep(text)
		if stays := k.Stays(append(future, list...), now); len(stays) != want || !stays["-3653"] || !stays["-3652"] || !stays["0"] {
			t.Errorf("%s keeps %v beside two of the future, want %d", text, stays, want)
		}
	}
	// Nor does the first of them, while the clock is still ahead.
	if stays := (offsite.Keep{Age: 48 * time.Hour}).Stays(append(future[1:], list...), future[1].Made); len(stays) != 4 || !stays["0"] || !stays["2"] {
		t.Errorf("one backup that is alone lets others go: %v", stays)
	}
	for _, bad := range []string{"", "0", "0d", "-1", "x", "1w", "99999999999"} {
		if _, err := offsite.ParseKeep(bad); !problem.Is(err, problem.Usage) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func vault(t *testing.T) (offsite.Vault, string) {
	t.Helper()
	dir := t.TempDir()
	u, err := offsite.ParseURL("file://" + dir)
	if err != nil {
		t.Fatal(err)
	}
	return offsite.Vault{Target: folder.New(folder.Options{URL: u}), URL: u}, dir
}

func backupFile(t *testing.T, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(path, offsitetest.Bytes(size), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAVaultKeepsFindsAndForgets(t *testing.T) {
	t.Parallel()
	v, dir := vault(t)
	recipient, id := keyPair(t)
	to := recipients(t, recipient)
	ids := []string{"20260401T020000Z-aaaaaa", "20260402T020000Z-bbbbbb", "20260403T020000Z-cccccc"}
	for _, backup := range ids {
		for range 2 { // the second time it is there
			if _, err := v.Upload(t.Context(), to, offsite.Copy{Instance: "one", ID: backup}, backupFile(t, 100_000)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := v.Upload(t.Context(), to, offsite.Copy{Instance: "two", ID: ids[0]}, backupFile(t, 10)); err != nil {
		t.Fatal(err)
	}
	foreign := []string{"one/notes.txt", "one/agnes-x.tar.zst", "agnes-20200101T000000Z-aaaaaa.tar.zst.age", "one/agnes-.tar.zst.age"}
	for _, f := range foreign {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	copies, err := v.Copies(t.Context(), "one")
	if err != nil || len(copies) != 3 || copies[0].ID != ids[2] || copies[2].ID != ids[0] {
		t.Fatalf("copies = %+v, %v", copies, err)
	}
	if _, err := v.Find(t.Context(), "", "latest"); !problem.Is(err, problem.Conflict) || !strings.Contains(err.Error(), "one (") || !strings.Contains(err.Error(), "two (") {
		t.Errorf("find among two instances: %v", err)
	}
	c, err := v.Find(t.Context(), "one", "latest")
	if err != nil || c.ID != ids[2] {
		t.Fatalf("find = %+v, %v", c, err)
	}
	if _, err := v.Find(t.Context(), "one", "20990101T000000Z-aaaaaa"); !offsite.HasCode(err, offsite.CodeNoObject) {
		t.Errorf("find what is not there: %v", err)
	}
	var got bytes.Buffer
	if err := v.Fetch(t.Context(), id, c, &got); err != nil || !bytes.Equal(got.Bytes(), offsitetest.Bytes(100_000)) {
		t.Errorf("fetched %d bytes, %v", got.Len(), err)
	}

	const ahead = "20990404T020000Z-dddddd"
	if _, err := v.Upload(t.Context(), to, offsite.Copy{Instance: "one", ID: ahead}, backupFile(t, 10)); err != nil {
		t.Fatal(err)
	}
	if c, err := v.Find(t.Context(), "one", "latest"); err != nil || c.ID != ids[2] {
		t.Errorf("the latest is %s, %v; want the newest that is not of the future", c.ID, err)
	}
	if c, err := v.Find(t.Context(), "one", ahead); err != nil || c.ID != ahead {
		t.Errorf("find = %+v, %v", c, err)
	} else if err := v.Target.Delete(t.Context(), c.Name()); err != nil {
		t.Fatal(err)
	}

	gone, err := v.Prune(t.Context(), "one", offsite.Keep{Count: 1})
	if err != nil || len(gone) != 2 || gone[0].ID != ids[0] {
		t.Errorf("pruned %+v, %v; want the two older, oldest first", gone, err)
	}
	if _, err := v.Prune(t.Context(), "one", offsite.Keep{}); err != nil {
		t.Error(err)
	}
	left, _ := v.Copies(t.Context(), "")
	if len(left) != 2 || left[0].ID != ids[2] || left[1].Instance != "two" {
		t.Errorf("left: %+v; want the newest of each instance", left)
	}
	for _, f := range foreign {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Errorf("a file that is not ours was deleted: %v", err)
		}
	}
}

// taken is a target that says of each name that it has it.
type taken struct{ offsite.Target }

// Put implements offsite.Target.
func (taken) Put(context.Context, string, int64, io.Reader) error {
	return offsite.Fault(offsite.CodeExists, nil, "It is there.", "Nothing.")
}

func TestACopyThatIsSaidToBeThereIsLookedAt(t *testing.T) {
	t.Parallel()
	v, _ := vault(t)
	recipient, _ := keyPair(t)
	to, path := recipients(t, recipient), backupFile(t, 1000)
	c := offsite.Copy{Instance: "one", ID: "20260401T020000Z-aaaaaa"}
	liar := v
	liar.Target = taken{v.Target}
	if _, err := liar.Upload(t.Context(), to, c, path); !offsite.HasCode(err, offsite.CodeUnreachable) {
		t.Errorf("one that is not there: %v", err)
	}
	if _, err := v.Upload(t.Context(), to, offsite.Copy{Instance: c.Instance, ID: c.ID + ".tar.zst.age-2"}, path); err != nil { // another name with the same beginning
		t.Fatal(err)
	}
	if _, err := liar.Upload(t.Context(), to, c, path); !offsite.HasCode(err, offsite.CodeUnreachable) {
		t.Errorf("another one is there: %v", err)
	}
	if _, err := v.Upload(t.Context(), to, c, path); err != nil {
		t.Fatal(err)
	}
	if got, err := liar.Upload(t.Context(), to, c, path); err != nil || got.Size == 0 {
		t.Errorf("one that is there: %+v, %v", got, err)
	}
	if _, err := liar.Upload(t.Context(), to, c, backupFile(t, 999)); !offsite.HasCode(err, offsite.CodeDamaged) {
		t.Errorf("one of another size: %v", err)
	}
}

// stalling is a target that is silent in the middle of everything, until its
// context ends; with patience it takes long and moves.
type stalling struct {
	offsite.Target

	slow bool
	gets int
}

func silent(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// Put implements offsite.Target.
func (s *stalling) Put(ctx context.Context, name string, size int64, r io.Reader) error {
	data := make([]byte, size)
	for at := 0; at < len(data); {
		n, err := r.Read(data[at:min(at+200, len(data))])
		if err != nil {
			return err
		}
		at += n
		if !s.slow {
			return silent(ctx)
		}
		if err := pause.For(ctx, 10*time.Minute); err != nil {
			return err
		}
	}
	return s.Target.Put(ctx, name, size, bytes.NewReader(data))
}

// List implements offsite.Target.
func (s *stalling) List(ctx context.Context, prefix string) ([]offsite.Object, error) {
	if !s.slow {
		return nil, silent(ctx)
	}
	return s.Target.List(ctx, prefix)
}

// Delete implements offsite.Target.
func (*stalling) Delete(ctx context.Context, _ string) error { return silent(ctx) }

// Get implements offsite.Target.
func (s *stalling) Get(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	s.gets++
	if s.gets == 2 {
		return nil, silent(ctx)
	}
	body, err := s.Target.Get(ctx, name, offset)
	if err != nil || s.gets > 2 {
		return body, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(body, 300), readerFunc(func([]byte) (int, error) { return 0, silent(ctx) })), body}, nil
}

type readerFunc func([]byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestATargetThatStallsIsGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v, _ := vault(t)
		recipient, with := keyPair(t)
		to, path := recipients(t, recipient), backupFile(t, 1000)
		target := &stalling{Target: v.Target}
		v.Target = target
		c := offsite.Copy{Instance: "one", ID: "19990401T020000Z-aaaaaa"} // the bubble begins in 2000
		unreachable := func(what string, call func() error) {
			t.Helper()
			began := time.Now()
			err := call()
			if took := time.Since(began); !offsite.HasCode(err, offsite.CodeUnreachable) || problem.As(err).Hint == "" || took > 20*time.Minute {
				t.Errorf("%s: %v after %s", what, err, took)
			}
		}
		unreachable("an upload", func() error { _, err := v.Upload(t.Context(), to, c, path); return err })
		unreachable("a list", func() error { _, err := v.Copies(t.Context(), "one"); return err })
		target.slow = true
		c, err := v.Upload(t.Context(), to, c, path)
		if err != nil {
			t.Fatalf("one that takes long and moves: %v", err)
		}
		if _, err := v.Upload(t.Context(), to, offsite.Copy{Instance: "one", ID: "19990402T020000Z-aaaaaa"}, path); err != nil {
			t.Fatal(err)
		}
		unreachable("a deletion", func() error { _, err := v.Prune(t.Context(), "one", offsite.Keep{Count: 1}); return err })
		var got bytes.Buffer
		if err := v.Fetch(t.Context(), with, c, &got); err != nil || !bytes.Equal(got.Bytes(), offsitetest.Bytes(1000)) || target.gets != 3 {
			t.Errorf("a download that stalls twice: %d bytes in %d attempts, %v", got.Len(), target.gets, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		target.slow = false
		if _, err := v.Copies(ctx, "one"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the caller's own end: %v", err)
		}
	})
}

func TestChunksKeepToTheSize(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		given, said int
		want        string // offsets and sizes
	}{
		{0, 0, "0+0!"}, {3, 3, "0+3!"}, {4, 4, "0+4!"}, {9, 9, "0+4 4+4 8+1!"}, {8, 8, "0+4 4+4!"}, {7, 9, ""}, {10, 9, ""},
	} {
		var got []string
		err := offsite.Chunks(iotest.OneByteReader(bytes.NewReader(make([]byte, tc.given))), int64(tc.said), 4, func(offset int64, piece []byte, last bool) error {
			s := fmt.Sprintf("%d+%d", offset, len(piece))
			if last {
				s += "!"
			}
			got = append(got, s)
			return nil
		})
		if tc.want != "" && (err != nil || strings.Join(got, " ") != tc.want) || tc.want == "" && err == nil {
			t.Errorf("%d bytes, said %d: %v, %v; want %s", tc.given, tc.said, got, err, tc.want)
		}
		if tc.want == "" && len(got) > 0 && strings.HasSuffix(got[len(got)-1], "!") {
			t.Errorf("%d bytes, said %d: the last piece was sent", tc.given, tc.said)
		}
	}
}

func TestRetryWaitsLongerAndLonger(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began, calls := time.Now(), 0
		err := offsite.Backoff{}.Retry(t.Context(), func() error {
			calls++
			return offsite.Fault(offsite.CodeUnreachable, nil, "x", "y")
		})
		if took := time.Since(began); err == nil || calls != 7 || took < 12*time.Second || took > time.Minute {
			t.Errorf("%d calls in %s: %v", calls, took, err)
		}
		began, calls = time.Now(), 0
		_ = offsite.Backoff{Attempts: 2}.Retry(t.Context(), func() error {
			calls++
			p := offsite.Fault(offsite.CodeUnreachable, nil, "x", "y")
			p.RetryAfter = 20 * time.Second
			return p
		})
		if took := time.Since(began); calls != 2 || took != 20*time.Second {
			t.Errorf("%d calls in %s, want 2 with the 20 s that were asked for", calls, took)
		}
		calls = 0
		_ = offsite.Backoff{}.Retry(t.Context(), func() error { calls++; return offsite.Fault(offsite.CodeCredentials, nil, "x", "y") })
		if calls != 1 {
			t.Errorf("%d calls of what fails for good", calls)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		_ = offsite.Backoff{First: time.Hour, Most: time.Hour}.Retry(ctx, func() error { return offsite.Fault(offsite.CodeUnreachable, errors.New("x"), "x", "y") })
		if took := time.Since(began); took != time.Second {
			t.Errorf("went on for %s after its caller left", took)
		}
	})
}

// TestSealingABigBackupNeedsLittleMemory streams 2 GB through seal and upload.
func TestSealingABigBackupNeedsLittleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("2 GB take seconds")
	}
	const size = 2 << 30
	recipient, _ := keyPair(t)
	path := filepath.Join(t.TempDir(), "big")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	var before, peak runtime.MemStats
	runtime.ReadMemStats(&before)
	sink := &counts{each: func() { // every 256 MB
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		if now.HeapInuse > peak.HeapInuse {
			peak = now
		}
	}}
	began := time.Now()
	v := offsite.Vault{Target: sink}
	c, err := v.Upload(t.Context(), recipients(t, recipient), offsite.Copy{Instance: "i", ID: "1"}, path)
	if err != nil || sink.n != c.Size || c.Size <= size {
		t.Fatalf("uploaded %d, %v; said %d", sink.n, err, c.Size)
	}
	grown := int64(peak.HeapInuse) - int64(before.HeapInuse)
	t.Logf("2 GB in %s, heap grew by %d MB", time.Since(began).Round(time.Millisecond), grown>>20)
	if grown > 64<<20 {
		t.Errorf("the heap grew by %d MB", grown>>20)
	}
}

// counts is a target that throws away what it is given, in pieces as S3 takes.
type counts struct {
	offsite.Target

	n    int64
	each func()
}

// Put implements offsite.Target.
func (c *counts) Put(_ context.Context, _ string, size int64, r io.Reader) error {
	return offsite.Chunks(r, size, 16<<20, func(_ int64, piece []byte, _ bool) error {
		if c.n += int64(len(piece)); c.n%(256<<20) < 16<<20 {
			c.each()
		}
		return nil
	})
}
