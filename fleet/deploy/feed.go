package deploy

import "io"

// Feed hands a running command its Stdin, for adapters, and closes it. An error
// of reading in is there to be received before w is closed, so before a command
// that reads to the end can end. That a command stops reading is no error.
func Feed(w io.WriteCloser, in io.Reader) <-chan error {
	failed := make(chan error, 1)
	go func() {
		defer w.Close()
		if in == nil {
			return
		}
		r := &watched{in: in}
		_, _ = io.Copy(w, r) // of writing
		if r.err != nil {
			failed <- r.err
		}
	}()
	return failed
}

// watched keeps the error of reading apart from that of writing.
type watched struct {
	in  io.Reader
	err error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.in.Read(p)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}
