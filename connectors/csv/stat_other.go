//go:build !linux

package csv

import "io/fs"

func identify(info fs.FileInfo) fileID {
	return fileID{Size: info.Size(), ModTime: info.ModTime().UnixNano()}
}
