package rollout

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// AuditFile is the name of the audit in the fleet's folder: one JSON object a
// line, for all rollouts, only ever appended to.
const AuditFile = "audit.jsonl"

// audit appends the lines of one rollout, each once.
type audit struct {
	path string
	file *os.File
	last int64 // sequence number of the last line of this rollout
}

// openAudit opens the file and finds out which of the rollout's lines it has.
func openAudit(path, rollout string) (*audit, error) {
	a := &audit{path: path}
	if path == "" {
		return a, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, a.unusable(err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, a.unusable(err)
	}
	a.file = file
	lines := bufio.NewReader(file)
	for {
		line, err := lines.ReadBytes('\n')
		var e Event
		if json.Unmarshal(line, &e) == nil && e.Rollout == rollout {
			a.last = max(a.last, e.Seq)
		}
		if errors.Is(err, io.EOF) {
			if len(line) > 0 { // a line that a power cut has broken off
				_, err = file.WriteString("\n")
			} else {
				err = nil
			}
		}
		if err != nil {
			return nil, errors.Join(a.unusable(err), file.Close())
		}
		if len(line) == 0 || line[len(line)-1] != '\n' {
			return a, nil
		}
	}
}

// write appends the lines that are not there yet, syncs them to the disk, and
// returns them.
func (a *audit) write(events []Event) ([]Event, error) {
	var news []Event
	var text bytes.Buffer
	for _, e := range events {
		if e.Seq <= a.last {
			continue
		}
		line, err := json.Marshal(e)
		if err != nil {
			return nil, err
		}
		text.Write(append(line, '\n'))
		news = append(news, e)
	}
	if len(news) == 0 {
		return nil, nil
	}
	if a.file != nil {
		if _, err := a.file.Write(text.Bytes()); err != nil {
			return nil, a.unusable(err)
		}
		if err := a.file.Sync(); err != nil {
			return nil, a.unusable(err)
		}
	}
	a.last = news[len(news)-1].Seq
	return news, nil
}

func (a *audit) close() {
	if a.file != nil {
		_ = a.file.Close() // each line was synced
	}
}

func (a *audit) unusable(err error) error {
	return problem.Wrap(err, problem.Internal, "The rollout's audit "+a.path+" cannot be written.", "Check the folder's permissions and free space, then go on: agnesctl fleet rollout --resume")
}
