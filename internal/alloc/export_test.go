package alloc

import "fairlead.dev/fairlead/internal/ipfamily"

// Free returns how many addresses of family f have no owner. Only the model asks.
func (a *Allocator[O]) Free(f ipfamily.Family) Count { return a.free.Count(f) }
