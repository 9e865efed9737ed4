package dataplane

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/fairlead/internal/ipfamily"
)

// Remove deletes our tables, with everything in them, from the network namespace of the
// calling thread, in one transaction. It returns the names of those that were there, such
// as "ip fairlead"; none is no error. ErrPermission is as in Probe.
func Remove() (removed []string, err error) {
	k := &kernel{}
	defer k.close()
	b := &batch{}
	for _, f := range ipfamily.All {
		_, err := k.get(unix.NFT_MSG_GETTABLE, family(f), 0,
			netlink.Attribute{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(TableName), 0)})
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking for table %s %s: %w", familyName(f), TableName, err)
		}
		b.addTable(f) // it may go in between
		b.deleteTable(f)
		removed = append(removed, familyName(f)+" "+TableName)
	}
	if len(removed) == 0 {
		return nil, nil
	}
	if err := k.commit(b); err != nil {
		return nil, fmt.Errorf("deleting tables %v: %w", removed, err)
	}
	return removed, nil
}
