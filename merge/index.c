/* SPDX-License-Identifier: Apache-2.0 */

#include "blobstore/base.h"
