// Package s3 keeps backups in a bucket of Amazon S3 or of a service that
// speaks like it (MinIO, Ceph, Cloudflare R2, Backblaze B2, Wasabi, …).
//
// A backup larger than one part is sent as a multipart upload, which becomes
// an object when it is completed and not before. The SHA-256 and the MD5 of
// each part travel with it, the first under the request's signature, and the
// server refuses a part that differs; in the end the size is compared. Where
// the service knows conditional writes (If-None-Match), a name that is taken
// is refused by the service itself. Uploads that a killed process left behind
// are aborted a day later, where the key may list them.
package s3

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // what Content-MD5 asks for, beside a SHA-256
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Options are what a target is made of.
type Options struct {
	URL         offsite.URL   // s3://BUCKET/PREFIX[?endpoint=…&region=…]
	AccessKeyID string        // with SecretKey; where empty, what AWS's own tools would use
	SecretKey   redact.Secret // AWS_* variables, ~/.aws, the machine's or the task's role
	PartSize    int           // 16 MiB; at least 5 MiB, which services ask for
	Transport   http.RoundTripper
	Backoff     offsite.Backoff
}

// Target is the bucket. It implements offsite.Target.
type Target struct {
	opt    Options
	bucket string
	where  string // the endpoint, for messages
	core   minio.Core
}

const (
	standardEndpoint = "https://s3.amazonaws.com"
	standardPart     = 16 << 20
	mostParts        = 10000 // of one upload, by S3's limits
	abandoned        = 24 * time.Hour
	sweepTime        = 30 * time.Second
)

// New returns the target. It connects to nothing yet.
func New(opt Options) (*Target, error) {
	endpoint := opt.URL.Param("endpoint")
	if endpoint == "" {
		endpoint = standardEndpoint
	}
	if !strings.Contains(endpoint, "://") {
		endpoint = "https://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https") || strings.Trim(u.Path, "/") != "" {
		return nil, problem.New(problem.Usage, "The endpoint of the S3 target cannot be used; expected https://HOST[:PORT].", "Mend it in AGNES_BACKUP_TARGET: s3://BUCKET/PREFIX?endpoint=https://HOST")
	}
	if (opt.AccessKeyID == "") != (opt.SecretKey == "") {
		return nil, problem.New(problem.Usage, "Only one half of the S3 target's key is set.", "Set AGNES_BACKUP_S3_ACCESS_KEY_ID and AGNES_BACKUP_S3_SECRET_ACCESS_KEY, or neither.")
	}
	if opt.PartSize == 0 {
		opt.PartSize = standardPart
	}
	creds := credentials.NewStaticV4(opt.AccessKeyID, opt.SecretKey.Reveal(), "")
	if opt.AccessKeyID == "" {
		creds = credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{Client: &http.Client{Timeout: 10 * time.Second}},
		})
	}
	transport := opt.Transport
	if transport == nil {
		if transport, err = newTransport(u.Scheme == "https"); err != nil {
			return nil, err
		}
	}
	core, err := minio.NewCore(u.Host, &minio.Options{
		Creds: creds, Secure: u.Scheme == "https", Region: opt.URL.Param("region"), Transport: transport,
		MaxRetries: 1, // this package tries again, as all targets do
	})
	if err != nil {
		return nil, problem.Wrap(err, problem.Usage, "The S3 target cannot be used", "Mend AGNES_BACKUP_TARGET: s3://BUCKET/PREFIX?endpoint=https://HOST")
	}
	return &Target{opt: opt, bucket: opt.URL.Host, where: u.Host, core: *core}, nil
}

// newTransport ends a connection on which nothing moves.
func newTransport(secure bool) (http.RoundTripper, error) {
	t, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, err
	}
	t.ResponseHeaderTimeout = 2 * time.Minute
	return t, nil
}

// Close implements offsite.Target.
func (t *Target) Close() error { return nil }

// Put implements offsite.Target.
func (t *Target) Put(ctx context.Context, name string, size int64, r io.Reader) error {
	key := t.opt.URL.Join(name)
	if _, err := t.stat(ctx, key); err == nil {
		return t.taken(name)
	} else if !offsite.HasCode(err, offsite.CodeNoObject) {
		return err
	}
	t.sweep(ctx, path.Dir(key)+"/")
	part := max(t.opt.PartSize, int(size/(mostParts-1))+1)
	if size <= int64(part) {
		return t.putWhole(ctx, key, name, size, r)
	}
	return t.putParts(ctx, key, name, size, part, r)
}

// sweep aborts what killed processes have begun to upload below a prefix: no
// list shows such parts, and they cost money. Not every key may do that, and
// nothing depends on it, so a failure is none.
func (t *Target) sweep(ctx context.Context, prefix string) {
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	begun, err := t.core.ListMultipartUploads(ctx, t.bucket, prefix, "", "", "", 1000)
	if err != nil {
		return
	}
	for _, u := range begun.Uploads {
		if strings.HasPrefix(u.Key, prefix) && time.Since(u.Initiated) > abandoned {
			_ = t.core.AbortMultipartUpload(ctx, t.bucket, u.Key, u.UploadID)
		}
	}
}

func (t *Target) putWhole(ctx context.Context, key, name string, size int64, r io.Reader) error {
	err := offsite.Chunks(r, size, int(max(size, 1)), func(_ int64, data []byte, _ bool) error {
		md5sum, sha := sums(data)
		return t.once(ctx, name, func(opt minio.PutObjectOptions) error {
			opt.DisableContentSha256 = true // it is given
			_, err := t.core.PutObject(ctx, t.bucket, key, bytes.NewReader(data), size, md5sum, sha, opt)
			return err
		})
	})
	if err != nil {
		return err
	}
	return t.verify(ctx, key, size)
}

func (t *Target) putParts(ctx context.Context, key, name string, size int64, part int, r io.Reader) (err error) {
	var id string
	err = t.retry(ctx, func() (err error) {
		id, err = t.core.NewMultipartUpload(ctx, t.bucket, key, minio.PutObjectOptions{ContentType: "application/octet-stream"})
		return err
	}, name)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // parts that stay cost money
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
			defer cancel()
			_ = t.core.AbortMultipartUpload(clean, t.bucket, key, id)
		}
	}()
	var parts []minio.CompletePart
	err = offsite.Chunks(r, size, part, func(_ int64, data []byte, _ bool) error {
		md5sum, sha := sums(data)
		return t.retry(ctx, func() error {
			done, err := t.core.PutObjectPart(ctx, t.bucket, key, id, len(parts)+1, bytes.NewReader(data), int64(len(data)),
				minio.PutObjectPartOptions{Md5Base64: md5sum, Sha256Hex: sha, DisableContentSha256: true})
			if err != nil {
				return err
			}
			parts = append(parts, minio.CompletePart{PartNumber: len(parts) + 1, ETag: done.ETag})
			return nil
		}, name)
	})
	if err != nil {
		return err
	}
	err = t.once(ctx, name, func(opt minio.PutObjectOptions) error {
		_, err := t.core.CompleteMultipartUpload(ctx, t.bucket, key, id, parts, opt)
		return err
	})
	if err != nil {
		return err
	}
	return t.verify(ctx, key, size)
}

// once makes the write that lets an object appear, where the name is free. A
// later attempt that finds the name taken, or the upload gone, shows that the
// first one went through and its answer was lost; not so after the answer that
// another write is under way (409), whose outcome nobody knows yet.
func (t *Target) once(ctx context.Context, name string, write func(minio.PutObjectOptions) error) error {
	opt := minio.PutObjectOptions{ContentType: "application/octet-stream"}
	opt.SetMatchETagExcept("*")
	tried := false
	return t.retry(ctx, func() error {
		err := write(opt)
		answer := minio.ToErrorResponse(err)
		if answer.StatusCode == http.StatusNotImplemented { // a service that does not know the condition
			opt = minio.PutObjectOptions{ContentType: "application/octet-stream"}
			err = write(opt)
			answer = minio.ToErrorResponse(err)
		}
		if tried && (answer.Code == minio.NoSuchUpload || answer.Code == minio.PreconditionFailed) {
			return nil
		}
		tried = tried || answer.Code != "ConditionalRequestConflict"
		return err
	}, name)
}

// verify compares the size of what the service now has.
func (t *Target) verify(ctx context.Context, key string, size int64) error {
	info, err := t.stat(ctx, key)
	if err != nil {
		return err
	}
	if info.Size != size {
		_ = t.core.RemoveObject(ctx, t.bucket, key, minio.RemoveObjectOptions{})
		return offsite.Fault(offsite.CodeDamaged, nil, fmt.Sprintf("Expected %d bytes in the bucket %s, found %d.", size, t.bucket, info.Size), "It is tried again; if it stays so, ask the service's operator.")
	}
	return nil
}

func sums(data []byte) (md5Base64, sha256Hex string) {
	a, b := md5.Sum(data), sha256.Sum256(data) //nolint:gosec // see the import
	return base64.StdEncoding.EncodeToString(a[:]), hex.EncodeToString(b[:])
}

func (t *Target) stat(ctx context.Context, key string) (info minio.ObjectInfo, err error) {
	err = t.retry(ctx, func() (err error) {
		info, err = t.core.StatObject(ctx, t.bucket, key, minio.StatObjectOptions{})
		if minio.ToErrorResponse(err).StatusCode == http.StatusNotFound {
			return t.absent(ctx, err)
		}
		return err
	}, t.opt.URL.Below(key))
	return info, err
}

// absent tells a missing object from a missing bucket: an answer to HEAD has
// no body that could say.
func (t *Target) absent(ctx context.Context, err error) error {
	if there, berr := t.core.BucketExists(ctx, t.bucket); berr == nil && !there {
		return t.missing(err)
	}
	return t.noObject(err)
}

// Get implements offsite.Target.
func (t *Target) Get(ctx context.Context, name string, offset int64) (r io.ReadCloser, err error) {
	err = t.retry(ctx, func() error {
		opt := minio.GetObjectOptions{}
		if offset > 0 {
			if err := opt.SetRange(offset, 0); err != nil {
				return err
			}
		}
		body, _, _, err := t.core.GetObject(ctx, t.bucket, t.opt.URL.Join(name), opt)
		r = body
		return err
	}, name)
	return r, err
}

// List implements offsite.Target.
func (t *Target) List(ctx context.Context, prefix string) (list []offsite.Object, err error) {
	err = t.retry(ctx, func() error {
		list = nil
		for o := range t.core.ListObjectsIter(ctx, t.bucket, minio.ListObjectsOptions{Prefix: t.opt.URL.Join(prefix), Recursive: true}) {
			if o.Err != nil {
				return o.Err
			}
			list = append(list, offsite.Object{Name: t.opt.URL.Below(o.Key), Size: o.Size, Stored: o.LastModified})
		}
		return nil
	}, "")
	slices.SortFunc(list, func(a, b offsite.Object) int { return strings.Compare(a.Name, b.Name) })
	return list, err
}

// Delete implements offsite.Target.
func (t *Target) Delete(ctx context.Context, name string) error {
	err := t.retry(ctx, func() error {
		return t.core.RemoveObject(ctx, t.bucket, t.opt.URL.Join(name), minio.RemoveObjectOptions{})
	}, name)
	if offsite.HasCode(err, offsite.CodeNoObject) {
		return nil
	}
	return err
}

func (t *Target) retry(ctx context.Context, f func() error, name string) error {
	return t.opt.Backoff.Retry(ctx, func() error {
		err := t.fault(f(), name)
		if cause := ctx.Err(); cause != nil && err != nil {
			return cause
		}
		return err
	})
}

// credentialsFrom says where the key came from, for hints.
func (t *Target) credentialsFrom() string {
	if t.opt.AccessKeyID != "" {
		return "Check AGNES_BACKUP_S3_ACCESS_KEY_ID and AGNES_BACKUP_S3_SECRET_ACCESS_KEY"
	}
	if os.Getenv("AWS_ACCESS_KEY_ID") != "" {
		return "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
	}
	return "Set AGNES_BACKUP_S3_ACCESS_KEY_ID and AGNES_BACKUP_S3_SECRET_ACCESS_KEY, or give the machine a role"
}
