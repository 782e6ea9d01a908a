package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// listen listens on one port of all loopback addresses, and of no other.
func listen(ctx context.Context, port int) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var bound error
		err := c.Control(func(fd uintptr) { bound = unix.BindToDevice(int(fd), "lo") })
		return errors.Join(err, bound)
	}}
	l, err := config.Listen(ctx, "tcp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, fmt.Errorf("listen on the loopback interface: %w", err)
	}
	return l, nil
}

// deadPorts are two ports: one whose queue of connections is full, so that the
// kernel drops every further SYN to any address, and one that is bound and does
// not listen.
type deadPorts struct {
	full, closed int
	fds          []int
}

func newDeadPorts() (*deadPorts, error) {
	d := &deadPorts{}
	bound := func() (fd, port int, err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return 0, 0, fmt.Errorf("make a socket: %w", err)
		}
		d.fds = append(d.fds, fd)
		if err := errors.Join(unix.BindToDevice(fd, "lo"), unix.Bind(fd, &unix.SockaddrInet4{})); err != nil {
			return 0, 0, fmt.Errorf("bind a port: %w", err)
		}
		name, err := unix.Getsockname(fd)
		if err != nil {
			return 0, 0, fmt.Errorf("find a port: %w", err)
		}
		return fd, name.(*unix.SockaddrInet4).Port, nil
	}
	fd, port, err := bound()
	if err == nil {
		d.full = port
		err = unix.Listen(fd, 0)
	}
	if err == nil {
		err = d.fill()
	}
	if err == nil {
		_, d.closed, err = bound()
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// fill takes the places in the queue; nobody ever accepts. The kernel lets one
// more in than the queue's length, so that two are enough.
func (d *deadPorts) fill() error {
	for range 2 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("make a socket: %w", err)
		}
		d.fds = append(d.fds, fd)
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: d.full, Addr: [4]byte{127, 0, 0, 1}})
		if err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("fill the queue: %w", err)
		}
	}
	return nil
}

func (d *deadPorts) close() {
	for _, fd := range d.fds {
		_ = unix.Close(fd)
	}
	d.fds = nil
}
