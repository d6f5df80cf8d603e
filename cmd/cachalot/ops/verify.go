package ops

import (
	"context"
	"errors"

	"github.com/cachalot-registry/cachalot/proxy/admin"
)

// Verify makes the mirror check every stored blob. It returns what was found, also along with
// an error. progress is called each second.
func (m *Mirror) Verify(ctx context.Context, dryRun bool, progress func(done, all int64)) (at string, found admin.VerifyEvent, err error) {
	c, err := m.client()
	if err != nil {
		return "", found, err
	}
	defer c.close()
	ctx, stop := interruptible(ctx)
	defer stop()
	err = c.stream(ctx, "verify", admin.VerifyRequest{DryRun: dryRun}, func(line []byte) error {
		if err := c.read(line, &found); err != nil {
			return err
		}
		progress(found.Bytes, found.Total)
		return nil
	})
	switch {
	case errors.Is(err, errInterrupted):
		err = errorf(Failed, "interrupted after %s of %s; %s", size(found.Bytes), size(found.Total), "damaged blobs that were found stay in quarantine")
	case err != nil:
	case found.Event != "end":
		err = errorf(Failed, "the answer of %s ended early", c.base)
	case found.Error != "":
		err = errorf(Failed, "%s", found.Error)
	}
	return c.base.String(), found, err
}
