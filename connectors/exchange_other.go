//go:build !linux

package connectors

import "errors"

// exchange cannot swap two folders in one step here.
func exchange(string, string) error { return errors.ErrUnsupported }

func startWriteback(string) {}
