package query

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ProbeWorker is a worker that binds as a real one does and then, in place of
// running a statement, answers with what probe finds from inside the process.
func ProbeWorker(probe func(statement string) any) error {
	control := os.NewFile(controlFD, "control")
	w := &worker{in: bufio.NewReader(control), out: bufio.NewWriter(control)}
	if err := w.open(); err != nil {
		return err
	}
	defer w.close()
	for {
		kind, payload, err := readFrame(w.in, nil)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if kind == frameBind {
			err = w.bind(payload)
		} else {
			var m queryMessage
			if err := json.Unmarshal(payload, &m); err != nil {
				return err
			}
			var found []byte
			if found, err = json.Marshal(probe(m.SQL)); err != nil {
				return err
			}
			err = errors.Join(writeMessage(w.out, frameStart, startMessage{}), writeFrame(w.out, frameData, found), writeMessage(w.out, frameEnd, endMessage{Rows: 1}))
		}
		if err := errors.Join(err, w.out.Flush()); err != nil {
			return err
		}
	}
}

// LyingWorker speaks the protocol up to the point that lie names, and then
// does not.
func LyingWorker(lie string) error {
	control := os.NewFile(controlFD, "control")
	in, out := bufio.NewReader(control), bufio.NewWriter(control)
	hang := func() error { _, err := io.Copy(io.Discard, in); return err }
	send := func(kind frameKind, payload string) error {
		return errors.Join(writeFrame(out, kind, []byte(payload)), out.Flush())
	}
	raw := func(b ...byte) error { _, err := out.Write(b); return errors.Join(err, out.Flush()) }
	if lie == "dies at once" {
		return nil
	}
	if _, _, err := readFrame(in, nil); err != nil { // bind
		return err
	}
	switch lie {
	case "never answers the bind":
		return hang()
	case "answers the bind with garbage":
		return errors.Join(raw([]byte("HTTP/1.1 200 OK\r\n\r\n")...), hang())
	case "answers the bind with another frame":
		return errors.Join(send(frameEnd, `{}`), hang())
	case "answers the bind with broken JSON":
		return errors.Join(send(frameReady, `{"Isolation":`), hang())
	case "dies in the middle of the bind's answer":
		return raw(byte(frameReady), 9, 0, 0, 0, '{')
	}
	if err := send(frameReady, `{"Isolation":"none"}`); err != nil {
		return err
	}
	if _, _, err := readFrame(in, nil); err != nil { // query
		return err
	}
	switch lie {
	case "announces a frame of 4 GB":
		return errors.Join(raw(byte(frameData), 0xff, 0xff, 0xff, 0xff), hang())
	case "never answers the query":
		return hang()
	case "answers with an unknown frame":
		return errors.Join(send('?', `x`), hang())
	case "starts with broken JSON":
		return errors.Join(send(frameStart, `[[[`), hang())
	case "ends with broken JSON":
		return errors.Join(send(frameEnd, `nope`), hang())
	case "fails with broken JSON":
		return errors.Join(send(frameFail, `nope`), hang())
	case "dies in the middle of a frame":
		return errors.Join(send(frameStart, `{"Columns":["a"]}`), raw(byte(frameData), 9, 0, 0, 0, '{'))
	case "dies after some rows":
		return errors.Join(send(frameStart, `{"Columns":["a"]}`), send(frameData, `{"columns":["a"],"rows":[[1]`))
	case "kills itself":
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	return errors.New("an unknown lie")
}

// WithoutLandlock makes the kernel answer as one that has no Landlock
// (seccomp(2)), in all threads of this process.
func WithoutLandlock() error {
	const load, jeq, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	filter := []unix.SockFilter{
		{Code: load, K: 0}, // the number of the system call
		{Code: jeq, Jt: 0, Jf: 1, K: unix.SYS_LANDLOCK_CREATE_RULESET},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	return seccomp(filter)
}
