package collector

import (
	"os"
	"testing"

	"github.com/flowaudit/flowaudit/proto/zstd"
)

func TestMain(m *testing.M) {
	zstd.Register()
	os.Exit(m.Run())
}
