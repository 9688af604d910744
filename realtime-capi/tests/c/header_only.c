/* The header needs nothing before it. */
#include "realtime.h"

int main(void)
{
    return RT_OK;
}
