//go:build !linux

package sim

import (
	"context"
	"errors"
	"net"
)

type deadPorts struct{ full, closed int }

func listen(context.Context, int) (net.Listener, error) {
	return nil, errors.New("the simulated fleet needs Linux, where all of 127.0.0.0/8 is this machine")
}

func newDeadPorts() (*deadPorts, error) { return &deadPorts{}, nil }

func (*deadPorts) close() {}
