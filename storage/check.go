package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// checkSize is what a check reads at a time: few calls, and no more memory than
// a check is worth.
const checkSize = 1 << 20

// damage is a file that is not the blob it is named as.
type damage struct {
	file fs.FileInfo
	why  error
}

// still returns why, if the name is still the file's that was read.
func (d *damage) still(name string) error {
	if info, err := os.Lstat(name); err != nil || !os.SameFile(info, d.file) {
		return nil //nolint:nilerr // it is gone, or another one
	}
	return d.why
}

// check reads a blob's file and compares its digest; before is called with the
// bytes about to be read. What cannot be read is damaged too. An error says that
// nothing is known of the blob: it is gone, may not be opened, or before failed.
//
// It reads from the disk, past the page cache: neither what is in there is
// pushed out by it, nor does a good page hide what has become of the disk.
func (k disk) check(ctx context.Context, d digest.Digest, before func(context.Context, int) error) (read int64, bad *damage, err error) {
	f, direct, err := openDirect(k.blob(d))
	if err != nil {
		return 0, nil, fmt.Errorf("open blob: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return 0, nil, fmt.Errorf("stat blob: %w", err)
	}
	defer lastInLine()()
	hash := d.Algorithm().Hash()
	// A slice of whole pages begins at one, as a read past the cache wants it. What
	// the file system wants more is EINVAL, and then it goes through the cache.
	buf := make([]byte, min(checkSize, blocks(info.Size())))
	for read < info.Size() {
		if err := before(ctx, int(min(checkSize, info.Size()-read))); err != nil {
			return read, nil, err
		}
		n, err := f.Read(buf)
		if direct && errors.Is(err, unix.EINVAL) {
			direct = false
			if cerr := control(f, throughCache); cerr == nil {
				continue
			}
		}
		_, _ = hash.Write(buf[:n]) // a hash never fails
		if !direct && n > 0 {
			_ = control(f, func(fd int) error { return unix.Fadvise(fd, read, int64(n), unix.FADV_DONTNEED) })
		}
		read += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			return read, &damage{info, fmt.Errorf("%w: file ends at byte %d of %d", ErrDigest, read, info.Size())}, nil
		case err != nil:
			return read, &damage{info, fmt.Errorf("read at %d: %w", read, pathless(err))}, nil
		}
	}
	if sum := digest.NewDigest(d.Algorithm(), hash); sum != d {
		return read, &damage{info, fmt.Errorf("%w: %d bytes with digest %s", ErrDigest, read, sum)}, nil
	}
	return read, nil, nil
}

// openDirect opens a file to be read past the page cache, where that can be.
func openDirect(name string) (f *os.File, direct bool, err error) {
	f, err = os.OpenFile(name, os.O_RDONLY|unix.O_DIRECT|unix.O_NOFOLLOW, 0)
	if !errors.Is(err, unix.EINVAL) {
		return f, true, err
	}
	f, err = os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	return f, false, err
}

// throughCache takes O_DIRECT from an open file.
func throughCache(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
	return err
}

func control(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var derr error
	if err := conn.Control(func(fd uintptr) { derr = do(int(fd)) }); err != nil {
		return err
	}
	return derr
}

// pathless is the error of a system call, without the name of its file.
func pathless(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// lastInLine has the disk serve everybody else before this goroutine, until the
// function it returns is called, where its scheduler knows of such (ioprio_set(2)).
func lastInLine() (leave func()) {
	const process, idle = 1, 3 << 13
	runtime.LockOSThread()
	before, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, process, 0, 0)
	if errno != 0 {
		return runtime.UnlockOSThread // a wish
	}
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, process, 0, idle)
	return func() {
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, process, 0, before)
		runtime.UnlockOSThread()
	}
}
