package upstreamtest

import (
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// HoldPort takes a port of 127.0.0.1 for a server that is still to listen, or that
// stops and listens again. Until release, no other program is given the port. The
// server must set SO_REUSEADDR, as all do that can be started again at once.
//
// To find a free port by closing a listener is not enough: any other test that asks
// for a port may be given it before the server is.
func HoldPort() (address string, release func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("hold a port: %w", os.NewSyscallError("socket", err))
	}
	// It never listens, so it refuses connections. Another socket with SO_REUSEADDR may have
	// the port too, if it asks for it by number (socket(7)).
	address, err = bindPort(fd)
	if err != nil {
		_ = unix.Close(fd)
		return "", nil, fmt.Errorf("hold a port: %w", err)
	}
	return address, func() { _ = unix.Close(fd) }, nil
}

// PortFor is HoldPort until the test ends.
func PortFor(tb TB) (address string) {
	tb.Helper()
	address, release, err := HoldPort()
	if err != nil {
		tb.Fatalf("%v", err)
		return ""
	}
	tb.Cleanup(release)
	return address
}

func bindPort(fd int) (string, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return "", os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return "", os.NewSyscallError("bind", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", os.NewSyscallError("getsockname", err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*unix.SockaddrInet4).Port)), nil
}
