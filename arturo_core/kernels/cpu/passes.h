// The passes over one block, in terms of a few vector operations that the including file defines (see plain.cpp).
// They are held to the pure functions of arturo_core/algorithm/compact.py; names are the same.
//
// An element is computed alike wherever a block begins: the last elements of a block go through the
// same operations in a buffer, so an element's numbers do not depend on how tensors are cut.

#include "vectors.h"

#include "numbers.h"

#include "codes.h"

#include "survey.h"

#include "observe.h"

#include "observe_codes.h"

#include "apply.h"
